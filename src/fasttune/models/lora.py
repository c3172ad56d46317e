"""Which layers LoRA adapts, by architecture, and a count of those it reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.models.architectures import FAMILIES


def linear_names(model: nn.Module) -> dict[str, int]:
    """Last part of each linear layer's name -> number of such layers, without the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return _count(model, lambda module: isinstance(module, nn.Linear) and module is not head)


def _count(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, int]:
    leaves = (name.rpartition(".")[2] for name, m in model.named_modules() if wanted(m))
    return dict(Counter(leaves))


def choose_targets(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """The wanted target names, or else the architecture's, or else every linear layer.

    Raises:
        FasttuneError: a name matches no linear layer of the model.
    """
    present = linear_names(model)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    known = FAMILIES.get(model_type)
    names = list(wanted or (known.targets if known else present))
    if missing := [name for name in names if name not in present]:
        raise FasttuneError(
            f"LoRA target '{missing[0]}' matches no layer of this {model_type or 'model'}",
            "lora.targets" if wanted else f"the table for '{model_type}'",
            did_you_mean(missing[0], list(present)),
        )
    return names


@dataclass(frozen=True)
class Coverage:
    """Which layers LoRA adapts.

    Attributes:
        adapted: layer name -> number of such layers with an adapter.
        left_out: layer name -> number of such linear layers without one.
        parameters: trainable parameters.
        total: parameters of the model with adapters; quantized weights count by their shape.
    """

    adapted: dict[str, int]
    left_out: dict[str, int]
    parameters: int
    total: int

    def __str__(self) -> str:
        names = " ".join(self.adapted)
        rest = f"; not on {' '.join(self.left_out)}" if self.left_out else ""
        share = 100 * self.parameters / self.total
        return (
            f"LoRA on {names} ({sum(self.adapted.values())} layers{rest}), "
            f"{self.parameters / 1e6:.2f} M of {self.total / 1e6:.1f} M parameters ({share:.2f} %)"
        )


def coverage(model: Any, base_linear: dict[str, int]) -> Coverage:
    """Count the layers that PEFT wrapped.

    Args:
        base_linear: `linear_names` of the model before it was wrapped.
    """
    from peft.tuners.lora import LoraLayer

    adapted = _count(model, lambda module: isinstance(module, LoraLayer))
    left_out = {n: c - adapted.get(n, 0) for n, c in base_linear.items() if c > adapted.get(n, 0)}
    return Coverage(adapted, left_out, *model.get_nb_trainable_parameters())
