"""Steps that go wrong: what is told, what is kept, and that the run goes on afterwards."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from fasttune import runs
from fasttune.config import load_config
from fasttune.encoding.batches import Collator
from fasttune.errors import FasttuneError
from fasttune.job import Job, prepare
from fasttune.machine import Device, this_device
from fasttune.models.demo import DEMO_MODEL
from fasttune.planning import cost
from fasttune.planning.forecast import forecast
from fasttune.planning.shape import read_shape
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, find_run
from fasttune.runs.resume import last_checkpoint
from fasttune.start import train as resume
from fasttune.training.train import train
from fasttune.training.trainer import Trainer
from fasttune.training.trouble import PATIENCE, FiniteSteps, Troubles, out_of_memory
from tests.conftest import listening, rows, write_rows

pytestmark = pytest.mark.slow

PLUGINS = load_plugins()
ONE_CORE = replace(this_device(), cores=1)
"""With two cores, two packs are computed side by side, each with half of a step's rows."""


def make_job(model: Path, data: Path, output: Path, **settings: object) -> Job:
    """A run of six steps of four rows each, to be changed by settings."""
    chosen = {
        "template": "reasoning", "data.train": str(data), "data.eval_fraction": 0.2,
        "data.skip_bad_rows": True, "model.name": str(model), "model.precision": "fp32",
        "output": str(output), "train.max_steps": 6, "train.save_steps": 2, "train.eval_steps": 3,
        "train.batch_size": 2, "train.gradient_accumulation": 2, "train.learning_rate": 1e-2,
        "train.warmup_steps": 0, "samples.count": 0, "samples.max_new_tokens": 4,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }  # fmt: skip
    return prepare(load_config(None, list(chosen.items())), PLUGINS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Forty rows behind a bad one."""
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", [{"bad": "1"}, *rows(40)])


@pytest.fixture(scope="module")
def unbroken(tiny_llama, data, tmp_path_factory) -> Run:
    return train(make_job(tiny_llama, data, tmp_path_factory.mktemp("unbroken"), samples__count=2))


@pytest.fixture
def job(tiny_llama, data, tmp_path):
    return lambda **settings: make_job(tiny_llama, data, tmp_path / "runs", **settings)


def losses(run: Run) -> list[float]:
    return [line.get("loss", line.get("eval_loss")) for line in run.metrics()]


def whole(run: Run) -> bool:
    """Nothing half written lies about."""
    return not [path for path in run.folder.rglob(".*") if path.name != ".lock"]


# Not finite


class Poison(TrainerCallback):
    """Makes something no number in the third step."""

    def __init__(self, what: str) -> None:
        self.what = what

    def _weight(self, model):
        return next(p for name, p in model.named_parameters() if "lora_A" in name)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2 and self.what == "loss":
            self._weight(model).data.fill_(math.nan)
        if state.global_step == 2 and self.what == "gradient":
            self._weight(model).register_hook(lambda gradient: gradient * math.inf)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2 and self.what == "weights":
            self._weight(model).data.fill_(math.nan)
            control.should_save = True

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= self.what == "weights" and state.global_step == 3


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("loss", "step 3: the loss is nan"),
        ("gradient", "step 3: the gradient is "),
        ("weights", "the adapter's weights contain NaN or infinity"),
    ],
)
def test_what_is_not_finite_ends_the_run_before_it_is_saved(what, said, job, tmp_path, monkeypatch):
    monkeypatch.setattr(type(PLUGINS), "training_callbacks", lambda *_: [Poison(what)])
    settings = {"train__eval_steps": 6} if what == "weights" else {}
    with pytest.raises(FasttuneError) as caught:
        train(job(**settings))
    assert caught.value.message.startswith(said)
    assert "train.learning_rate" in caught.value.hint
    run = find_run("last", tmp_path / "runs")
    assert run.manifest["status"] == "failed" and not run.adapter.exists() and whole(run)
    assert [path.name for path in run.checkpoints.glob("check*")] == ["checkpoint-2"]
    assert all(map(math.isfinite, losses(run)))
    if what != "weights":
        numbers, first, *_ = caught.value.where.splitlines()
        numbers = [int(number) for number in numbers.removeprefix("rows ").split(", ")]
        assert len(numbers) == 4 and numbers == sorted(numbers) and min(numbers) > 1
        n = numbers[0] - 2  # the first row of the file is a bad one
        assert first == f"row {numbers[0]}: 'Add {n} and {n + 1}.'"
    if what == "loss":
        monkeypatch.undo()
        assert resume(run, PLUGINS).manifest["status"] == "done"
        assert len(losses(run)) == 9 and all(map(math.isfinite, losses(run)))


def test_a_held_out_loss_that_is_not_finite_ends_the_run(job, tmp_path, monkeypatch):
    own = Trainer._losses

    def poisoned(self, batch, into):
        found = own(self, batch, into)
        if not self.model.training and self.state.global_step == 3:
            into.sums[0] = math.inf
        return found

    monkeypatch.setattr(Trainer, "_losses", poisoned)
    with pytest.raises(FasttuneError, match="the held-out loss is inf after step 3"):
        train(job())
    run = find_run("last", tmp_path / "runs")
    assert run.manifest["status"] == "failed"
    assert all(map(math.isfinite, losses(run)))


def test_a_scaled_loss_may_skip_steps_but_not_for_ever():
    look = FiniteSteps()
    assert look.problem(1.0, 2.0, False) == ""
    assert look.problem(math.nan, 2.0, True) == "the loss is nan"
    assert look.problem(1.0, math.inf, False).startswith("the gradient is inf (the loss is 1)")
    look = FiniteSteps()
    for _ in range(PATIENCE - 1):
        assert look.problem(1.0, math.nan, True) == ""
    assert look.problem(1.0, 2.0, True) == ""
    for _ in range(PATIENCE - 1):
        assert look.problem(1.0, math.inf, True) == ""
    assert f"for {PATIENCE} steps in a row" in look.problem(1.0, math.inf, True)


# Memory


class Allocator:
    """Has room for so many rows of a batch, and refuses one pack of the training."""

    def __init__(self, patch, rows: float, refuse: int | None = None) -> None:
        self.rows, self.refuse, self.asked = rows, refuse, 0
        own = Trainer._losses

        def losses(trainer, batch, into):
            self.asked += trainer.model.training
            layout = batch.get("row_layout")
            rows = len(layout.rows) if layout else len(batch["input_ids"])
            if rows > self.rows or (trainer.model.training and self.asked == self.refuse):
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't "
                    "allocate memory: you tried to allocate 99 bytes. Error code 12"
                )
            return own(trainer, batch, into)

        patch.setattr(Trainer, "_losses", losses)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_memory_that_runs_out_makes_smaller_batches_of_the_same_steps(
    packing, job, unbroken, monkeypatch
):
    settings = {"train__packing": packing, "train__batch_size": 4, "samples__count": 2}
    Allocator(monkeypatch, 2)
    with listening() as said:
        run = train(job(**settings, train__gradient_accumulation=1), device=ONE_CORE)
    assert losses(run) == pytest.approx(losses(unbroken), abs=1e-5)
    told = [line for line in said if line.startswith("memory ran out")]
    limit = run.manifest["batch_limit"]
    what = "packs, in tokens," if packing else "batches, in rows,"
    assert len(told) == 1 and f"{what} of at most {limit} from here on" in told[0]
    assert limit == 2 if not packing else 60 < limit < 200
    assert "batch_limit" not in unbroken.manifest
    assert torch.allclose(weights(run), weights(unbroken), atol=1e-4)


def test_the_longest_rows_come_first_and_leave_nothing(job, unbroken, monkeypatch):
    """As on a GPU, whose memory can run out: at once or not at all."""
    monkeypatch.setattr("fasttune.training.trainer.tensor_device", lambda: "cuda")
    taken: list[list[int]] = []
    own = Trainer._take_step

    def noting(self, rows):
        taken.append([len(row) for row in rows.values()])
        return own(self, rows)

    monkeypatch.setattr(Trainer, "_take_step", noting)
    Allocator(monkeypatch, math.inf, refuse=1)
    settings = {"train__batch_size": 4, "train__gradient_accumulation": 1}
    with listening() as said:
        run = train(job(**settings, samples__count=2))
    seen = sorted((length for step in taken[1:] for length in step), reverse=True)
    assert len(taken) == 7 and min(taken[0]) >= seen[3]
    assert sum(taken[0]) == max(map(sum, taken))
    assert losses(run) == pytest.approx(losses(unbroken), abs=1e-5)
    assert torch.allclose(weights(run), weights(unbroken), atol=1e-4)
    first = [line for line in said if line.startswith(("trying the longest", "memory ran out"))]
    assert first[0] == "trying the longest 4 rows first" and len(first) == 2
    assert first[1].startswith("memory ran out at step 1")


def weights(run: Run) -> torch.Tensor:
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_the_gradients_of_a_failed_attempt_are_dropped_and_a_resume_keeps_the_limit(
    job, unbroken, tmp_path, monkeypatch
):
    """The second of two packs is refused, when the first has left its gradients."""
    settings = {"model__max_length": 96, "samples__count": 2}
    with monkeypatch.context() as patch:
        Allocator(patch, math.inf, refuse=2)
        patch.setattr(type(PLUGINS), "training_callbacks", lambda *_: [Poison("loss")])
        with listening() as said, pytest.raises(FasttuneError, match="step 3: the loss is nan"):
            train(job(**settings), device=ONE_CORE)
    assert len([line for line in said if line.startswith("memory ran out at step 1")]) == 1
    run = find_run("last", tmp_path / "runs")
    limit = run.manifest["batch_limit"]
    assert losses(run) == pytest.approx(losses(unbroken)[:3], abs=1e-5)
    seen = []
    own = Collator.__call__
    monkeypatch.setattr(
        Collator, "__call__", lambda self, rows: (seen.append(self.limit), own(self, rows))[1]
    )
    resume(run, PLUGINS)
    assert set(seen) == {limit} and run.manifest["batch_limit"] == limit
    assert losses(run) == pytest.approx(losses(unbroken), abs=1e-5)


def test_a_row_that_does_not_fit_by_itself_ends_the_run(job, tmp_path, monkeypatch):
    Allocator(monkeypatch, 0)
    monkeypatch.setitem(cost.PROCESS, "cpu", 1e7)  # so that what a tiny model takes matters
    with pytest.raises(FasttuneError) as caught:
        train(job(data__eval_fraction=0))
    assert "memory ran out at step 1, with one row at a time, of up to" in caught.value.message
    assert caught.value.where.startswith("rows ") and len(caught.value.where.splitlines()) == 4
    assert caught.value.hint.startswith("this takes less: train.gradient_checkpointing=on")
    assert find_run("last", tmp_path / "runs").manifest["status"] == "failed"


def test_the_plan_of_less_takes_a_tenth_less_than_one_row():
    config = load_config(None, [("model.max_length", 2048), ("train.batch_size", 8)])
    planned = forecast(config, read_shape(DEMO_MODEL), Device("CPU", "cpu", 64e9, matmul=1e11))
    assert planned.config.train.gradient_checkpointing == "off"
    assert planned.smaller() == ("train.gradient_checkpointing=on",)


def test_what_is_memory_that_ran_out():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert Troubles().named([0, 4]) == "rows 1, 5 of those trained on"


# A full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_torch(*_, **__):
    raise RuntimeError(
        "[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file "
        "data/0: file write failed"
    )


def full_before_the_end_of_a_file(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1408 vs 1302")


def full_for_safetensors(*_, **__):
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def test_a_full_disk_at_any_place_of_a_run_loses_nothing(job, unbroken, tmp_path, monkeypatch):
    """The same run meets it everywhere, one after the other, and ends as one that did not."""
    own_log = Run.log

    def log(run, values):
        own_log(run, values) if values["step"] != 3 else full()

    places = [
        ("fasttune.runs.Run.log", log, "metrics.jsonl", "checkpoint-2"),
        ("torch.save", full_for_torch, "checkpoints/checkpoint-4", "checkpoint-2"),
        ("torch.save", full_before_the_end_of_a_file, "checkpoints/checkpoint-4", "checkpoint-2"),
        ("matplotlib.figure.Figure.savefig", full, "loss.png", "checkpoint-6"),
        ("peft.peft_model.safe_save_file", full_for_safetensors, "adapter", "checkpoint-6"),
        ("fasttune.training.report.write_text", full, "samples.json", "checkpoint-6"),
    ]
    run = None
    for target, failing, name, kept in places:
        with monkeypatch.context() as patch:
            patch.setattr(target, failing)
            with pytest.raises(FasttuneError) as caught:
                train(job(samples__count=2)) if run is None else resume(run, PLUGINS)
        run = run or find_run("last", tmp_path / "runs")
        assert caught.value.message.startswith(f"no room to write {name}: "), caught.value
        assert "MB free" in caught.value.where and str(run.folder) in caught.value.hint
        assert run.manifest["status"] == "failed" and whole(run)
        assert last_checkpoint(run).name == kept
    assert resume(run, PLUGINS).manifest["status"] == "done"
    assert losses(run) == pytest.approx(losses(unbroken), abs=1e-5)
    samples = [json.loads((each.folder / "samples.json").read_text()) for each in (run, unbroken)]
    assert samples[0] == samples[1]


def test_the_status_is_noted_on_a_disk_without_any_room(tmp_path, monkeypatch):
    facts = {
        "template": PLUGINS.facts("reasoning"),
        "system": None, "model": "m", "quantization": "none", "dtype": "float32",
        "lora": {"layers": {}, "left_out": {}, "parameters": 1},
        "data": {"source": "s", "train_sha256": "", "trained_sha256": "",
                 "heldout_sha256": "", "train_rows": 1, "eval_rows": 0, "train_tokens": 1},
        "versions": {}, "device": "cpu",
    }  # fmt: skip
    run = runs.create_run(load_config(None, [("output", str(tmp_path))]), "m", facts)
    before = run.manifest
    size = (run.folder / "manifest.json").stat().st_size
    monkeypatch.setattr("fasttune.runs.folder.write_json", full)
    run.stop("failed")
    assert run.manifest == {**before, "status": "failed"}
    assert (run.folder / "manifest.json").stat().st_size < size
