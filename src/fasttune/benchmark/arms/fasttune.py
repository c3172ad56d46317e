"""The fasttune arm: the training of `fasttune run`."""

from __future__ import annotations

from pathlib import Path

from fasttune.benchmark.arms.common import paced, start_adapters
from fasttune.benchmark.pipe import Pace, Spec
from fasttune.encoding.batches import section_names
from fasttune.formats.parts import given, learn
from fasttune.formats.template import Template
from fasttune.generation.generator import Generator
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, load_base
from fasttune.models.tokenizer import load_tokenizer
from fasttune.runs import Run
from fasttune.training.callbacks import Progress, RunLog
from fasttune.training.train import make_trainer

UNUSED = Template(name="unused", parts=[given("prompt", "-"), learn("response", "{output}")])
"""A generator needs a template. The rows are already encoded, so this one renders nothing."""


def train(spec: Spec, pace: Pace, folder: Path) -> None:
    """Load and train the model as `fasttune run` does."""
    config = spec.config
    choices = decide(config, this_device())
    tokenizer = load_tokenizer(config.model.name)
    model = load_base(config.model, choices, tokenizer)
    model, _ = add_lora(model, config.lora, config.seed, choices)
    start_adapters(model, config.seed)
    run = Run(folder)
    generator = Generator(model, tokenizer, UNUSED, choices)
    callbacks = [RunLog(run), Progress(), paced(pace)]
    trainer = make_trainer(
        config, generator, spec.rows, [], section_names(spec.rows), run, callbacks
    )
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.save_strategy = "no"
    trainer.train()
