"""What makes a training step on a CPU fast, put onto a model with fresh adapters.

On CUDA Unsloth's own patches do this work and the model is left as it is.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fasttune.models.choices import Choices
from fasttune.models.fast.attention import attend_by_row
from fasttune.models.fast.grouped import group_lora
from fasttune.models.fast.norm import fuse_norms
from fasttune.models.head import causal_lm

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class FastPath:
    """Which parts of the fast path a model takes.

    Attributes:
        by_row: packed rows attend one by one, and may share their beginning.
        groups: how many groups of LoRA layers are computed together; 0 leaves them to PEFT.
        norms: how many RMSNorms are fused.
    """

    by_row: bool
    groups: int
    norms: int

    def __str__(self) -> str:
        rows = "rows attend one by one" if self.by_row else "one mask for all rows of a pack"
        lora = f"LoRA in {self.groups} groups" if self.groups else "LoRA layer by layer"
        return f"{rows}, {lora}" + (f", {self.norms} norms fused" if self.norms else "")


def speed_up(model: Any, choices: Choices) -> FastPath:
    """Switch on what this model and device allow; the numbers it computes stay the same.

    Args:
        model: with PEFT's adapters.
    """
    if choices.kind != "cpu":
        return FastPath(by_row=False, groups=0, norms=0)
    inner = causal_lm(model)
    by_row = attend_by_row(inner)
    groups = len(group_lora(model)) if choices.grouped else 0
    give_back_freed_memory()
    if not inner.is_gradient_checkpointing:
        keep_freed_memory()
    return FastPath(by_row, groups, fuse_norms(inner))


def give_back_freed_memory() -> None:
    """Give the kernel what loading left in the heap; with another C library than glibc nothing
    happens. Doing it in every step takes a tenth of its time."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one from now on. By default large tensors go
    back to the kernel, which has to fill them with zeros again: 5 % of a step's processor time,
    2.5 % with this."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
