"""The base model's own dropout.

microsoft/phi-2 has one of 0.1 behind every block. With it a row packed with others has another
loss than alone, and a resumed run other ones than an unbroken one. LoRA brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fasttune.config import ModelConfig


def switch_dropout_off(model: Any) -> None:
    """Set every dropout of a model to 0; adapters that are added later keep theirs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in dropouts(vars(module)):  # attention looks its own up in the module
            setattr(module, name, 0.0)


def base_dropout(config: Any, chosen: ModelConfig) -> str:
    """What a run says of the dropout in the model's config.json; nothing where there is none."""
    found = dropouts(config.to_dict())
    named = ", ".join(f"{name} {value:g}" for name, value in found.items())
    state = "off" if chosen.dropout == "off" else "on"
    return f"dropout of the base model {state} ({named} in its config)" if named else ""


def dropouts(settings: Mapping[str, Any]) -> dict[str, float]:
    """The dropouts above 0 among a model's settings, as its config.json names them; that of a
    classifier (GPT-NeoX names one) is not in a language model."""
    return {
        name: float(value)
        for name, value in settings.items()
        if name.endswith(("dropout", "pdrop"))
        and not name.startswith("classifier")
        and isinstance(value, float)
        and value > 0
    }
