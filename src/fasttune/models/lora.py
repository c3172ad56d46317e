"""Which layers LoRA reaches, per architecture, and a guard that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.models.architectures import FAMILIES


def linear_names(model: nn.Module) -> dict[str, int]:
    """Last part of the name of every linear layer -> how often it occurs; the output head is left
    out."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            leaf = name.rsplit(".", 1)[-1]
            counts[leaf] = counts.get(leaf, 0) + 1
    return counts


def choose_targets(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """The target names: the wanted ones, else the architecture's, else every linear layer.

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
    """What LoRA reaches.

    Attributes:
        adapted: name of a layer -> number of such layers with an adapter.
        left_out: the same for the linear layers without one.
        parameters: trainable parameters.
        total: parameters of the model, adapters included; quantised weights count by their shape.
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
    """Count what PEFT really wrapped. `base_linear` is `linear_names` from before wrapping."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            leaf = name.rsplit(".", 1)[-1]
            adapted[leaf] = adapted.get(leaf, 0) + 1
    left_out = {n: c - adapted.get(n, 0) for n, c in base_linear.items() if c > adapted.get(n, 0)}
    parameters, total = model.get_nb_trainable_parameters()
    return Coverage(adapted, left_out, parameters, total)
