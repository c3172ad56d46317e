"""What the arms share: the same initial adapters, and the pace of transformers' Trainer."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch

from fasttune.benchmark.pipe import Pace


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def count_trainable(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(model))


def start_adapters(model: torch.nn.Module, seed: int) -> None:
    """Give the adapters initial weights that depend on the seed and their place alone.

    B is 0 and A uniform within 1/sqrt(inputs), as PEFT draws it (Kaiming with a = sqrt(5)).
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
        elif ".lora_A." in name:
            place = name[name.index("layers.") :] if "layers." in name else name
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place}".encode()))
            start = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)


def paced(pace: Pace) -> Any:
    """The callback that puts transformers' Trainer under a pace."""
    from transformers import TrainerCallback

    class Paced(TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            pace.ready(count_trainable(model))

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
        ) -> None:
            if logs and "loss" in logs:  # after the update, before the next rows are fetched
                pace.step(logs["loss"])

    return Paced()
