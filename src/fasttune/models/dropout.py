"""The base model's own dropout; LoRA has a separate one.

microsoft/phi-2 has a dropout of 0.1 after every block. It gives a packed row another loss than the
same row alone, and a resumed run other losses than an unbroken one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fasttune.config import ModelConfig


def switch_dropout_off(model: Any) -> None:
    """Set every dropout of a model to 0; adapters added later keep theirs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _dropouts(vars(module)):  # attention reads its dropout from an attribute
            setattr(module, name, 0.0)


def base_dropout(config: Any, chosen: ModelConfig) -> str:
    """Describe the dropout in a model's config.json and whether it is on; "" if there is none."""
    named = ", ".join(f"{name} {value:g}" for name, value in _dropouts(config.to_dict()).items())
    state = "off" if chosen.dropout == "off" else "on"
    return f"dropout of the base model {state} ({named} in its config)" if named else ""


def _dropouts(settings: Mapping[str, Any]) -> dict[str, float]:
    """The dropouts above 0, by their names in config.json. GPT-NeoX's config also names one for a
    classifier, which a language model does not have."""
    return {
        name: float(value)
        for name, value in settings.items()
        if name.endswith(("dropout", "pdrop"))
        and not name.startswith("classifier")
        and isinstance(value, float)
        and value > 0
    }
