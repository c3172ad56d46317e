"""Checkpoints count once they are sealed; what kills leave behind is neither used nor kept."""

from __future__ import annotations

from types import SimpleNamespace

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from transformers import TrainerControl, TrainerState

from fasttune.files import SEAL, seal
from fasttune.training.checkpoints import SealCheckpoints, drop_incomplete
from fasttune.training.train import train
from fasttune.training.trainer import Trainer
from tests.conftest import rows, write_rows
from tests.training.test_trouble import make_job

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"1")
    (folder / "scheduler.pt").write_bytes(b"2")
    return folder


@pytest.mark.parametrize("left", ["whole", "unsealed", "a file less", "a damaged seal"])
def test_incomplete_checkpoints_are_deleted(left, checkpoint):
    if left != "unsealed":
        seal(checkpoint)
    if left == "a file less":
        (checkpoint / "scheduler.pt").unlink()
    if left == "a damaged seal":
        (checkpoint / SEAL).write_bytes(b"\xff")
    drop_incomplete(checkpoint.parent)
    assert checkpoint.exists() == (left == "whole")


@pytest.mark.parametrize("evaluated", [False, True])
def test_an_epoch_that_ends_with_a_saved_step_saves_again_only_after_an_evaluation(
    evaluated, checkpoint
):
    """An evaluation may change what is the best step so far."""
    args, state = SimpleNamespace(output_dir=str(checkpoint.parent)), TrainerState(global_step=4)
    model = torch.nn.Linear(1, 1)
    callback = SealCheckpoints()
    callback.on_save(args, state, TrainerControl())
    assert (checkpoint / SEAL).exists()
    control = TrainerControl(should_save=True, should_evaluate=evaluated)
    callback.on_epoch_end(args, state, control, model)
    assert control.should_save == evaluated
    assert (checkpoint / SEAL).exists() != evaluated  # it is incomplete while it is written again


def test_a_run_resumed_from_its_last_step_takes_no_step(tiny_llama, tmp_path, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", [{"bad": "1"}, *rows(40)])
    job = make_job(tiny_llama, data, tmp_path / "runs", train__save_total_limit=1)
    run = train(job)
    weights = run.adapter / "adapter_model.safetensors"
    expected = weights.read_bytes()
    weights.unlink()
    run.update({"status": "failed"})
    assert [path.name for path in sorted(run.checkpoints.glob("check*"))] == [
        "checkpoint-4",  # one more than asked for: the other has no seal while it is written
        "checkpoint-6",
    ]
    monkeypatch.setattr(Trainer, "training_step", lambda *_: pytest.fail("took a step"))
    train(job, run)
    assert run.manifest["status"] == "done" and run.manifest["steps"] == 6
    assert weights.read_bytes() == expected
