"""What the arms share: the initial adapters, and a callback that paces transformers' Trainer."""

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
    """Set the adapters' initial weights from the seed and each adapter's place in the model.

    B is 0, and A is uniform within 1/sqrt(inputs), as in PEFT (Kaiming with a = sqrt(5)).
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
        elif ".lora_A." in name:
            place = name[name.index("layers.") :] if "layers." in name else name
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place}".encode()))
            weights = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(weights, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(weights)


def paced(pace: Pace) -> Any:
    """Make a callback for transformers' Trainer that waits for commands and reports steps."""
    from transformers import TrainerCallback

    class Paced(TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
            pace.ready(count_trainable(model))

        def on_log(self, *args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs:  # after the update, before the next rows are fetched
                pace.step(logs["loss"])

    return Paced()
