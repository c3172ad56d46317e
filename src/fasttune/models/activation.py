"""Phi's activation in one operation."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: Any) -> int:
    """Replace transformers' gelu_new by torch's gelu with `approximate="tanh"`.

    Both are 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), from arXiv:1606.08415, section 2.
    transformers computes it in eight operations, which keep four tensors of the MLP's width for the
    backward pass and round after each one. torch's keeps only its input.

    Returns:
        The number of replaced modules.
    """
    holders = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is NewGELUActivation
    ]
    for module, name in holders:
        setattr(module, name, nn.GELU(approximate="tanh"))
    return len(holders)
