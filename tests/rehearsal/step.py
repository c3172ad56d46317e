"""The optimiser step of a run: its loss, and the gradients as the optimiser gets them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import save_file

from fasttune.config import load_config
from fasttune.encoding.encode import encode
from fasttune.generation.generator import Generator
from fasttune.machine import this_device
from fasttune.models import load
from fasttune.models.choices import decide
from fasttune.models.tokenizer import load_tokenizer
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run
from fasttune.training.callbacks import Progress, TrainerCallback
from fasttune.training.trainer import Trainer

ROWS = [
    {"instruction": "Add 3 and 4.", "input": "", "reasoning": "3 + 4 = 7.", "output": "7"},
    {"instruction": "日本の首都は？", "input": "地理", "reasoning": "東京", "output": "東京です。"},
    {"instruction": "Name a month.", "input": "", "reasoning": "One of 12.", "output": '"May"'},
    {"instruction": "Add 5 and 6.", "input": "Two", "reasoning": "5 + 6 = 11.", "output": "11"},
]
SETTINGS = [  # two steps that change nothing, each of all rows, in two packs
    "lora.r=4", "train.batch_size=2", "train.gradient_accumulation=2", "train.epochs=2",
    "train.learning_rate=1e-30", "train.warmup_steps=5", "train.max_grad_norm=1e6",
    "train.save_steps=100",
]  # fmt: skip


class Noted(TrainerCallback):
    def __init__(self):
        self.losses, self.gradients = [], {}

    def loss(self, loss):
        self.losses.append(loss.clone())
        return loss

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.gradients[f"gradient {name}"] = parameter.grad.clone()


def take(settings, place):
    """Train with these settings, as on the command line.

    Beside `place` are left NAME.safetensors, with both losses, the last gradients, the adapters
    and the dequantised matrices of the base, and NAME.rows.json with what they belong to.
    """
    config = load_config(None, [*SETTINGS, *settings])
    choices = decide(config, this_device())
    tokenizer = load_tokenizer(config.model.name)
    base = load.load_base(config.model, choices, tokenizer)
    model, _ = load.add_lora(base, config.lora, 1, choices)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # 0 at the start, which would hide half of the gradients
            torch.nn.init.normal_(parameter, std=0.02)
    template = load_plugins().template("reasoning")
    rows = [encode(template, row, tokenizer) for row in ROWS]
    noted = Noted()
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(
            config, Generator(model, tokenizer, template, choices), rows, [],
            Run(Path(run)), [Progress(), noted],
        )  # fmt: skip
        step = trainer.training_step
        trainer.training_step = lambda *args: noted.loss(step(*args))
        trainer.train()
    tensors = {f"loss {at}": each for at, each in enumerate(noted.losses)} | noted.gradients
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"lora {name}"] = parameter.data
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and name.endswith(".base_layer"):
            tensors[f"base {name}"] = dequantize_4bit(module.weight.data, state)
    tensors = {name: each.contiguous() for name, each in tensors.items()}
    save_file(tensors, place.with_suffix(".safetensors"))
    facts = {
        "rows": [{"input_ids": row.input_ids, "labels": row.labels} for row in rows],
        "dtype": choices.dtype,
        "alpha": config.lora.alpha,
    }
    place.with_suffix(".rows.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0
