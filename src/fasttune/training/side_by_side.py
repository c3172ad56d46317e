"""Packs of a step computed at the same time, on a CPU.

Two threads of torch wait for each other at the end of every product. Two threads of Python with one
of torch each have a pack to themselves, and wait once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class SideBySide:
    """Threads of Python that divide torch's among them; with one, all goes on in the caller's.

    The caller has no more of torch's from then on than each of them: what it does between steps is
    little, and would wait for its threads where another program runs.

    Attributes:
        threads: how many of Python's.
    """

    def __init__(self, count: int) -> None:
        self.threads = count
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            each = max(1, torch.get_num_threads() // count)
            torch.set_num_threads(each)
            self._pool = ThreadPoolExecutor(count, "pack", torch.set_num_threads, (each,))

    def map(self, do: Callable[[Any], T], batches: Iterable[Any]) -> Iterator[T]:
        """What `do` makes of each batch, in order. A thread has torch's modes anew: gradients are
        on, and there is no autocast."""
        return map(do, batches) if self._pool is None else self._pool.map(do, batches)


def changes_with_length(config: Any) -> bool:
    """Whether a model's rotary embedding is another for long rows, which it then keeps: packs of
    several lengths would take it from each other."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    kinds = str(scaling)
    return "dynamic" in kinds or "longrope" in kinds
