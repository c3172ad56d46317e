"""What libraries have for the asking: schedules, DoRA, NEFTune, warm-up as a share."""

from __future__ import annotations

import json
from typing import get_args

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import SchedulerType

from fasttune.config import Schedule, TrainConfig, load_config
from fasttune.errors import FasttuneError
from fasttune.exports.export import export
from fasttune.job import check_optimizer, prepare
from fasttune.planning.schedule import BY_EVALUATION, check_schedule
from fasttune.plugins.discovery import load_plugins
from fasttune.training.train import train
from tests.conftest import rows, write_rows

pytestmark = pytest.mark.slow

PLUGINS = load_plugins()
SCHEDULES = get_args(Schedule)
NEEDED = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2.0},
}


def test_the_schedules_of_a_config_are_transformers_own():
    assert {*SCHEDULES} == {name.value for name in SchedulerType}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_can_be_made(name):
    check_schedule(TrainConfig(schedule=name, schedule_options=NEEDED.get(name, {})), True)
    with pytest.raises(FasttuneError, match="cannot create the schedule") as caught:
        check_schedule(TrainConfig(schedule=name, schedule_options={"min_rate": 1.0}), True)
    assert "min_rate" in caught.value.where
    if name in BY_EVALUATION:
        with pytest.raises(FasttuneError, match="follows the held-out loss"):
            check_schedule(TrainConfig(schedule=name), False)


@pytest.mark.parametrize(
    "name", ["auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "sgd", "lomo"]
)
def test_an_optimizer_of_transformers_is_accepted(name, monkeypatch):
    monkeypatch.setattr("fasttune.job.OPTIMIZER_PACKAGES", {})  # lomo is not installed
    check_optimizer(name)


def test_an_unknown_optimizer_is_refused_before_a_model_is_loaded():
    with pytest.raises(FasttuneError, match="no optimizer 'adamw_torhc'") as caught:
        check_optimizer("adamw_torhc")
    assert "did you mean 'adamw_torch'" in caught.value.hint


class Watch(TrainerCallback):
    """The learning rate of each step, and the hooks on the embeddings."""

    def __init__(self):
        self.rates: list[float] = []
        self.noisy: set[bool] = set()
        self.embeddings = None

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.embeddings = model.get_input_embeddings()
        self.noisy.add(self.is_noisy())

    def is_noisy(self) -> bool:
        hooks = self.embeddings._forward_hooks.values()
        return "neftune_post_forward_hook" in [getattr(hook, "__name__", "") for hook in hooks]


def test_a_run_with_all_of_them_and_its_merged_export(tiny_llama, tmp_path, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", rows(16))
    settings = {
        "template": "alpaca", "data.train": str(data), "data.eval_fraction": 0.2,
        "model.name": str(tiny_llama), "model.precision": "fp32", "output": str(tmp_path / "runs"),
        "train.max_steps": 5, "train.batch_size": 2, "train.learning_rate": 1e-2,
        "samples.count": 0, "lora.dora": True, "train.neftune_noise_alpha": 5,
        "train.warmup_ratio": 0.4, "train.schedule": "cosine_with_min_lr",
        "train.schedule_options": {"min_lr_rate": 0.5},
    }  # fmt: skip
    watch = Watch()
    monkeypatch.setattr(type(PLUGINS), "training_callbacks", lambda *_: [watch])
    run = train(prepare(load_config(None, list(settings.items())), PLUGINS))
    # Two of five steps warm up; the rate ends above half of its highest.
    assert watch.rates[:3] == pytest.approx([0, 0.5e-2, 1e-2])
    assert 0.5e-2 < watch.rates[-1] < 1e-2
    assert watch.noisy == {True} and not watch.is_noisy()
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    sizes = [name for name in adapter if "lora_magnitude_vector" in name]
    assert len(sizes) == 2 * 7
    assert json.loads((run.adapter / "adapter_config.json").read_text())["use_dora"] is True
    assert run.config.train.schedule_options == {"min_lr_rate": 0.5}

    done = export(run, "merged", plugins=PLUGINS, rows=2)
    assert done.verification.verified and done.verification.max_dlogit < 1e-3
    [name] = [name for name in sizes if "layers.1.mlp.down_proj" in name]
    merged = load_file(done.folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.allclose(merged.norm(dim=1), adapter[name], rtol=1e-5)
