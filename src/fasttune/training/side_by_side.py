"""Packs of a step computed at the same time, on a CPU.

Two threads of torch wait for each other at the end of every product. Two threads of Python, each
with a pack and one thread of torch, wait once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class SideBySide:
    """Threads of Python that divide torch's threads among them. The caller keeps as few: between
    steps it computes little, and would wait for its threads if another program runs."""

    def __init__(self, count: int) -> None:
        self.threads = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            each = max(1, torch.get_num_threads() // count)
            torch.set_num_threads(each)
            self._pool = ThreadPoolExecutor(count, "pack", torch.set_num_threads, (each,))

    def map(self, do: Callable[[Any], T], batches: Iterable[Any]) -> Iterator[T]:
        """The results of `do` for each batch, in order. In a thread, gradients are on and autocast
        is off."""
        return map(do, batches) if self._pool is None else self._pool.map(do, batches)


def changes_with_length(config: Any) -> bool:
    """Whether a model replaces its rotary embedding for long rows, which packs share."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    return any(kind in str(scaling) for kind in ("dynamic", "longrope"))
