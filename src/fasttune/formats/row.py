"""The typed row: what a line of a file becomes before any format sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TURN_COLUMNS = ("instruction", "input", "reasoning", "output")
"""The columns of one exchange; all other columns belong to the whole row."""


class Row(Mapping[str, str]):
    """One example: a system text, the turns of a conversation, and other columns.

    As a mapping it shows its last turn together with the system text and the other columns, which
    is all there is to a row of one turn.

    Attributes:
        turns: the exchanges in order, at least one; each maps TURN_COLUMNS to text.
        system: the row's own system text, "" for none.
        columns: every other column, such as "task".
        language: what was detected for a row without a column `language`; "" if nothing was.
    """

    __slots__ = ("_last", "columns", "language", "system", "turns")

    def __init__(
        self,
        turns: Sequence[Mapping[str, str]],
        system: str = "",
        columns: Mapping[str, str] | None = None,
        language: str = "",
    ) -> None:
        self.turns = tuple(turns)
        self.system = system
        self.columns = columns or {}
        self.language = language
        self._last = self.turn(-1)

    @classmethod
    def of(cls, values: Mapping[str, str], earlier: Sequence[Mapping[str, str]] = ()) -> Row:
        """A row from flat columns, or from a row, with `earlier` turns before its own."""
        if isinstance(values, Row):
            turns = (*earlier, *values.turns)
            return cls(turns, values.system, values.columns, values.language) if earlier else values
        turn = {column: values[column] for column in TURN_COLUMNS if column in values}
        others = {c: t for c, t in values.items() if c not in TURN_COLUMNS and c != "system"}
        return cls((*earlier, turn), values.get("system") or "", others)

    def in_language(self, language: str) -> Row:
        """The row with the language that was detected."""
        return Row(self.turns, self.system, self.columns, language)

    def turn(self, number: int) -> dict[str, str]:
        """What a format reads in one turn: its own columns, and those of the row."""
        language = {"language": self.language} if self.language else {}
        return {**self._stated(number), **language}

    def _stated(self, number: int) -> dict[str, str]:
        system = {"system": self.system} if self.system else {}
        return {**system, **self.turns[number], **self.columns}

    def with_turn(self, values: Mapping[str, str]) -> Row:
        """The row with some columns of its last turn, or of the row, replaced."""
        changed = self.of({**self._stated(-1), **values}, self.turns[:-1])
        return changed if "language" in values else changed.in_language(self.language)

    def without(self, columns: Sequence[str]) -> Row:
        """The row without some columns of its last turn, or of the row."""
        kept = {column: text for column, text in self._stated(-1).items() if column not in columns}
        return self.of(kept, self.turns[:-1]).in_language(self.language)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every (column, text) of all turns and of the row."""
        if self.system:
            yield "system", self.system
        for turn in self.turns:
            yield from turn.items()
        yield from self.columns.items()

    def as_json(self) -> dict[str, Any]:
        """All but the detected language; equal for equal rows."""
        others = {"columns": dict(self.columns)} if self.columns else {}
        return {"system": self.system, "turns": [*map(dict, self.turns)], **others}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], language: str = "") -> Row:
        """The row that `as_json` has saved."""
        return cls(saved["turns"], saved["system"], saved.get("columns"), language)

    def __getitem__(self, column: str) -> str:
        return self._last[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Row):
            return self.as_json() == other.as_json()
        return isinstance(other, Mapping) and len(self.turns) == 1 and self._last == dict(other)

    def __hash__(self) -> int:
        return hash(json.dumps(self.as_json(), sort_keys=True))

    def __repr__(self) -> str:
        earlier = f", earlier: {self.turns[:-1]!r}" if self.turns[1:] else ""
        return f"Row({dict(self)!r}{earlier})"
