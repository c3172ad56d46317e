"""A problem of a row or of its file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `row` counts from 1, and is the line where there are lines, or 0 for the whole
    file; `message` reads on from row and column. A row with a finding that is not fatal is used."""

    row: int
    column: str
    message: str
    fatal: bool
    source: str = ""

    def __str__(self) -> str:
        parts = (self.source, f"row {self.row}" if self.row else "", self.column)
        return ": ".join([", ".join(filter(None, parts)), self.message]).removeprefix(": ")
