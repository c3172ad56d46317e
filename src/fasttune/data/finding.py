"""A problem of a row or of its file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem.

    Attributes:
        row: from 1; in JSONL, CSV and TSV the line where the row begins; 0 for the whole file.
        column: our name of the column, "" if it is about none.
        message: reads on from row and column.
        fatal: False for a warning, such as a duplicate: the row is used.
        source: of several, the one that the row is in; else "".
    """

    row: int
    column: str
    message: str
    fatal: bool
    source: str = ""

    def __str__(self) -> str:
        parts = (self.source, f"row {self.row}" if self.row else "", self.column)
        return ": ".join([", ".join(filter(None, parts)), self.message]).removeprefix(": ")
