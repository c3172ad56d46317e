"""The step under the choices of cards, with tensors on a CPU: autocast, losses, waiting."""

from __future__ import annotations

import json
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fasttune.config import LoraConfig, ModelConfig, RunConfig, TrainConfig, load_config
from fasttune.encoding.encode import encode
from fasttune.generation.decoding import Decoding
from fasttune.generation.generator import Generator, Sampling
from fasttune.generation.likelihood import with_likelihoods
from fasttune.job import prepare
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora
from fasttune.planning.devices import GPUS
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run
from fasttune.training.callbacks import Progress
from fasttune.training.train import train
from fasttune.training.trainer import Trainer
from tests.conftest import SETTLED, listening, load_model

pytestmark = pytest.mark.slow

ROWS = [
    {
        "instruction": f"Add {n} and {n + 1}.",
        "input": "" if n % 2 else "Two numbers.",
        "reasoning": f"{n} + {n + 1} = {2 * n + 1}.",
        "output": f"{2 * n + 1}",
    }
    for n in range(16)
]
H100, T4 = GPUS["h100"], GPUS["t4"]


class Contexts:
    """In which dtype autocast is on (None: it is off) whenever a block of the model is entered, by
    the innermost of the watched functions."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, set[torch.dtype | None]] = {}
        self._inside: list[str] = []
        for owner, name in (
            (Trainer, "training_step"),
            (Trainer, "evaluate"),
            (Decoding, "_prefill"),
            (Decoding, "__call__"),
        ):
            patch.setattr(owner, name, self._watched(name, getattr(owner, name)))
        patch.setattr(
            "fasttune.generation.likelihood._losses",
            self._watched("likelihood", with_likelihoods.__globals__["_losses"]),
        )

    def _watched(self, name, function):
        def watched(*args, **kwargs):
            self._inside.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._inside.pop()

        return watched

    def _note(self, module, inputs):
        if type(module).__name__ == "PhiDecoderLayer" and self._inside:
            on = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if on else None
            self.found.setdefault(self._inside[-1], set()).add(dtype)

    @contextmanager
    def watching(self):
        handle = torch.nn.modules.module.register_module_forward_pre_hook(self._note)
        try:
            yield self.found
        finally:
            handle.remove()


# Runs for a card


@pytest.fixture(scope="module")
def run_for(tiny_phi, tmp_path_factory):
    """Trains three steps with the choices of a device; what it said, its run and its contexts."""
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plugins = load_plugins()

    def run(device, **settings):
        config = load_config(
            None,
            [
                ("template", "reasoning"), ("data.train", str(data)), ("model.name", str(tiny_phi)),
                ("output", str(tmp_path_factory.mktemp("runs"))), ("data.eval_fraction", 0.25),
                ("model.quantization", "nf4"), ("train.max_steps", 3), ("train.warmup_steps", 0),
                ("train.learning_rate", 1e-2), ("samples.count", 2), ("samples.max_new_tokens", 4),
                *((key.replace("__", "."), value) for key, value in settings.items()),
            ],
        )  # fmt: skip
        with (
            pytest.MonkeyPatch.context() as patch,
            Contexts(patch).watching() as contexts,
            listening() as said,
        ):
            return train(prepare(config, plugins), device=device), said, contexts

    return run


@pytest.fixture(scope="module")
def on_a_cpu(run_for):
    return run_for(this_device(), model__precision="fp32")


def losses(run: Run) -> list[float]:
    return [line.get("loss", line.get("eval_loss")) for line in run.metrics()]


def test_a_run_with_the_choices_of_an_h100_is_under_autocast_throughout(run_for, on_a_cpu):
    run, said, contexts = run_for(H100)
    assert contexts == dict.fromkeys(
        ("training_step", "evaluate", "_prefill", "__call__"), {torch.bfloat16}
    )
    assert run.manifest["choices"] == {
        "kind": "cuda",
        "quantization": "nf4",
        "dtype": "bfloat16",
        "autocast": True,
        "loss_scaling": False,
        "attention": "varlen",
        "fast_path": False,
        "why_plain": "model.fast_path is off by default on a GPU",
        "nf4_copy": False,
        "optimizer": "adamw_8bit",
        "checkpointing": "off",  # as the plan for 80 GB has it
        "side_by_side": 1,
    }
    assert "choices: NF4 in bfloat16, autocast, adamw_8bit, checkpointing off" in said
    assert "dropout of the base model off (resid_pdrop 0.1 in its config)" in said
    assert any(line.startswith("plan: ") and "of 80.0 GB" in line for line in said)
    assert (run.manifest["quantization"], run.manifest["dtype"]) == ("nf4", "bfloat16")
    exact = losses(on_a_cpu[0])
    assert losses(run) == pytest.approx(exact, rel=0.02) and exact[-1] < exact[0] - 1


def test_in_fp32_the_choices_of_a_t4_change_no_loss_and_nothing_is_cast(run_for, on_a_cpu):
    """One mask instead of row by row, LoRA layer by layer, blocks computed again: the same sums."""
    run, said, contexts = run_for(
        T4, model__precision="fp32", train__optimizer="adamw_torch",
        train__gradient_checkpointing="unsloth",
    )  # fmt: skip
    assert "choices: NF4 in float32, no autocast, adamw_torch, checkpointing unsloth" in said
    assert any("layers as loaded" in line for line in said)
    there, on_cpu_said, on_cpu_contexts = on_a_cpu
    kept = "NF4 weights kept dequantised, adamw_torch, checkpointing off"
    chosen = [line.removesuffix(", 2 packs side by side") for line in on_cpu_said]
    assert f"choices: NF4 in float32, no autocast, {kept}" in chosen
    assert any(
        "rows attend one by one, 2 layers in few functions each" in line for line in on_cpu_said
    )
    assert len(losses(run)) == 5
    assert losses(run) == pytest.approx(losses(there), rel=1e-4)
    off = dict.fromkeys(("training_step", "evaluate", "_prefill", "__call__"), {None})
    assert contexts == on_cpu_contexts == off


# Prompting


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.bfloat16), ("fp32", None)])
def test_prompting_is_under_the_autocast_of_training(precision, dtype, tiny_phi, monkeypatch):
    config = ModelConfig(name=str(tiny_phi), quantization="none", precision=precision)
    choices = decide(RunConfig(model=config), H100)
    model, tokenizer = load_model(config, choices)
    model, _ = add_lora(model, LoraConfig(r=4), 0, choices)
    generator = Generator(model.eval(), tokenizer, load_plugins().template("reasoning"), choices)
    sampling = Sampling(max_new_tokens=3)
    with Contexts(monkeypatch).watching() as found:
        answers = list(generator.answers(ROWS[:3], sampling, 2))
        with_likelihoods(generator, answers, 2)
        generator.stream(ROWS[0], sampling, lambda piece: None)
    phases = ("_prefill", "__call__", "likelihood")
    assert found == dict.fromkeys(phases, {dtype})


# Waiting for the card


class Reads(TorchDispatchMode):
    """The operations whose result is read by Python, or whose size is: they wait for a card."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2].partition(".")[0]
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.NAMES or by_mask:
            stack = [Path(f.filename).name for f in traceback.extract_stack()]
            if "batches.py" not in stack:  # rows are laid into packs on the CPU
                self.found.append(stack)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "packing"),
    [(H100, True), (H100, False), (None, True)],
    ids=["packed", "padded", "cpu"],
)
def test_nothing_is_read_between_the_packs_of_a_step(device, packing, tiny_phi, tmp_path):
    """But by transformers, while it makes a mask."""
    model_settings = ModelConfig(name=str(tiny_phi), quantization="none", max_length=80)
    train = TrainConfig(batch_size=2, packing=packing, **SETTLED)
    config = RunConfig(model=model_settings, train=train)
    choices = decide(config, device or replace(this_device(), cores=1))
    model, tokenizer = load_model(config.model, choices)
    model, _ = add_lora(model, LoraConfig(r=4), 0, choices)
    template = load_plugins().template("reasoning")
    rows = [encode(template, row, tokenizer) for row in ROWS[:4]]
    generator = Generator(model, tokenizer, template, choices)
    trainer = Trainer(config, generator, rows, [], Run(tmp_path), [Progress()])
    batches = trainer.collator(rows)
    assert len(batches) == 2
    trainer.training_step(trainer.model, [0, 1])  # Unsloth imports a module there
    with Reads() as reads:
        loss = trainer.training_step(trainer.model, [0, 1, 2, 3])
        assert reads.found == [] or device is not None
        by_mask = [stack for stack in reads.found if "masking_utils.py" in stack]
        assert reads.found == by_mask
        float(loss)
        assert len(reads.found) == len(by_mask) + 1  # the control: this one is seen
        handler = trainer.callback_handler  # looks at loss and norm by one copy
        handler.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
        assert len(reads.found) == len(by_mask) + 1
    learned = [row.trained for row in [*rows[:2], *rows]]
    assert trainer.section_loss.tokens == sum(learned)
    assert sum(len(batch["targets"]) for batch in batches) == sum(learned[2:])
