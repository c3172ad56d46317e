"""Packs computed at the same time have the numbers of packs one after the other, bit for bit."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch

from fasttune.config import LoraConfig, ModelConfig, RunConfig, TrainConfig
from fasttune.encoding.encode import encode
from fasttune.generation.generator import Generator
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run
from fasttune.training.callbacks import Progress
from fasttune.training.side_by_side import SideBySide, changes_with_length
from fasttune.training.train import train
from fasttune.training.trainer import Trainer
from tests.conftest import SETTLED, load_model, rows, wake_adapters, write_rows
from tests.training.test_trouble import make_job

pytestmark = pytest.mark.slow

TWO_CORES = replace(this_device(), cores=2)


def make(folder, tmp_path, **model):
    settings = ModelConfig(name=str(folder), max_length=160, **model)
    config = RunConfig(
        model=settings, lora=LoraConfig(r=4), train=TrainConfig(batch_size=4, **SETTLED)
    )
    choices = decide(config, TWO_CORES)
    assert choices.side_by_side == 2
    base, tokenizer = load_model(config.model, choices)
    model, _ = add_lora(base, config.lora, 1, choices)
    wake_adapters(model)
    template = load_plugins().template("reasoning")
    encoded = [encode(template, row, tokenizer) for row in rows(6)]
    generator = Generator(model, tokenizer, template, choices)
    trainer = Trainer(config, generator, encoded, encoded[:5], Run(tmp_path), [Progress()])
    return trainer, encoded


def figures(trainer):
    """The loss, the loss by section, the gradients and the held-out losses of a step."""
    trainer.model.zero_grad()
    trainer.section_loss.reset()
    loss = trainer.training_step(trainer.model, [*range(6)])
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
    held_out = trainer.evaluate()
    return loss, trainer.section_loss.means(), gradients, held_out


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_side_by_side_is_one_after_the_other(kind, precision, quantization, request, tmp_path):
    folder = request.getfixturevalue(kind)
    trainer, encoded = make(folder, tmp_path, precision=precision, quantization=quantization)
    assert trainer.fast.layers or trainer.fast.groups
    batches = trainer.collator(encoded)
    assert len(batches) == 2
    sizes = [batch["input_ids"].numel() for batch in batches]
    assert max(sizes) < 1.5 * min(sizes)

    meet, met = threading.Barrier(2, timeout=60), []
    compute = trainer._losses

    def losses(*args):
        if trainer.model.training:
            meet.wait()  # fails where they do not run at the same time
            met.append(threading.current_thread().name)
        return compute(*args)

    trainer._losses = losses
    loss, sections, gradients, held_out = figures(trainer)
    assert len(met) == 2 and len({*met}) == 2 and threading.main_thread().name not in met
    trainer._losses, trainer._packs = compute, SideBySide(1)
    expected_loss, expected_sections, expected, expected_held_out = figures(trainer)
    assert loss == expected_loss and sections == expected_sections
    assert gradients.keys() == expected.keys() and len(gradients) >= 24
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradients[name], gradient), name
    for name, value in expected_held_out.items():
        assert held_out[name] == value or name == "eval_seconds"


def test_a_run_resumed_with_one_core_is_the_unbroken_one(tiny_llama, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"bad": "1"}, *rows(40)])
    job = make_job(tiny_llama, data, tmp_path / "runs", train__max_steps=4, train__save_steps=2)
    whole = train(job, device=TWO_CORES)
    assert whole.manifest["choices"]["side_by_side"] == 2
    again = train(job, device=TWO_CORES)
    for folder in (again.adapter, again.checkpoints / "checkpoint-4"):
        shutil.rmtree(folder)
    again.update({"status": "failed"})
    resumed = train(job, again, device=replace(TWO_CORES, cores=1))
    assert resumed.manifest["choices"]["side_by_side"] == 2
    weights = "adapter_model.safetensors"
    assert (resumed.adapter / weights).read_bytes() == (whole.adapter / weights).read_bytes()
    assert [line["loss"] for line in resumed.metrics() if "loss" in line] == [
        line["loss"] for line in whole.metrics() if "loss" in line
    ]


@pytest.mark.parametrize(
    ("scaling", "changes"),
    [
        (None, False),
        ({"rope_type": "default", "rope_theta": 1e4}, False),
        ({"rope_type": "llama3", "factor": 8.0}, False),
        ({"rope_type": "dynamic", "factor": 2.0}, True),
        ({"full_attention": {"rope_type": "longrope"}}, True),
    ],
)
def test_a_rotary_embedding_that_changes_is_not_shared(scaling, changes):
    class Config:
        rope_parameters = scaling

    assert changes_with_length(Config) == changes


def test_threads_that_fail_say_so():
    def fail(at):
        if at == 1:
            raise RuntimeError("no room")
        return at

    packs = SideBySide(2)
    with pytest.raises(RuntimeError, match="no room"):
        [*packs.map(fail, range(3))]
    assert [*packs.map(fail, [0, 2])] == [0, 2]
