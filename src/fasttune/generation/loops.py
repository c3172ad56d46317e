"""Ending an answer that repeats itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria

from fasttune.text.repetition import LOOP_COPIES


class LoopStop(StoppingCriteria):
    """Ends each row of a batch that repeats itself, and changes no token.

    A row loops once it ends with LOOP_COPIES copies of a phrase of up to LONGEST tokens, and at
    least SHORTEST tokens repeat those one phrase before: a ruler of dashes or a counted list is no
    loop yet.

    Attributes:
        found: row of the first batch -> number of generated tokens at which its loop was seen.
    """

    LONGEST = 128
    SHORTEST = 32

    def __init__(self, rows: int, prompt_width: int, eos: int) -> None:
        self.found: dict[int, int] = {}
        self._rows = list(range(rows))
        self._width, self._eos = prompt_width, eos
        self._ended = torch.zeros(rows, dtype=torch.bool)
        # How many tokens up to now in a row equal the one `period` tokens before, per period.
        self._runs = torch.zeros(rows, self.LONGEST, dtype=torch.int64)
        periods = torch.arange(1, self.LONGEST + 1)
        self._enough = ((LOOP_COPIES - 1) * periods).clamp(min=self.SHORTEST)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        generated = input_ids[:, self._width :].cpu()
        last, before = generated[:, -1:], generated[:, :-1].flip(1)[:, : self.LONGEST]
        self._ended |= last[:, 0] == self._eos
        reach = before.shape[1]
        self._runs[:, :reach] = (self._runs[:, :reach] + 1) * (before == last)
        looping = (self._runs >= self._enough).any(1) & ~self._ended
        for row in looping.nonzero().flatten().tolist():
            self.found[self._rows[row]] = generated.shape[1]
        self._ended |= looping
        return looping.to(input_ids.device)

    def narrow(self, kept: list[int]) -> None:
        """Keep these rows of the batch only."""
        self._rows = [self._rows[at] for at in kept]
        self._ended, self._runs = self._ended[kept], self._runs[kept]
