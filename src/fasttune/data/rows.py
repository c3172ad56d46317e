"""Sequences of rows that need a few bytes of memory a row, however long its texts are."""

from __future__ import annotations

import json
import marshal
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar, overload

from fasttune.files import cache_dir
from fasttune.plugins.template import Row, Segment

T = TypeVar("T")
IN_MEMORY = 2**24
"""Bytes of text up to which rows stay in memory: no disk is touched for a small data set."""


class Lazy(Sequence[T]):
    """A sequence whose rows are made when they are asked for."""

    @abstractmethod
    def row(self, place: int) -> T:
        """The row at a place from 0 to the length, exclusive."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        chosen = range(len(self))[place]
        return [self.row(at) for at in chosen] if isinstance(chosen, range) else self.row(chosen)

    def __iter__(self) -> Iterator[T]:
        return map(self.row, range(len(self)))


class Rows(Lazy[Row]):
    """Rows of text and how a template renders them; equal to any sequence with the same rows."""

    @abstractmethod
    def number(self, place: int) -> int:
        """The number in its source, from 1, of the row at a place."""

    def origin(self, place: int) -> str:
        """Which of several sources the row at a place is in; "" where there is but one."""
        return ""

    @abstractmethod
    def rendering(self, place: int) -> str:
        """The segments of the row at a place as a JSON text, made when the row was checked."""

    def segments(self, place: int) -> list[Segment]:
        """The segments of the row at a place; none without a template."""
        return [Segment(*each) for each in json.loads(self.rendering(place))]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


class StoredRows(Rows):
    """Rows in a temporary file without a name, which ends with them; 16 bytes of memory a row."""

    def __init__(self) -> None:
        folder = cache_dir()
        # Not /tmp where there is a choice: many systems keep that in memory.
        place = str(folder) if folder.is_dir() else None
        self._file = SpooledTemporaryFile(IN_MEMORY, dir=place)  # noqa: SIM115, open while it lives
        self._ends = array("q", [0])
        self._numbers = array("q")

    def append(self, row: Row, segments: Iterable[Segment] = (), number: int | None = None) -> None:
        """Add a row and its rendering at the end.

        Args:
            number: in its source; by default that of its place here.
        """
        self._numbers.append(len(self) + 1 if number is None else number)
        rendering = json.dumps([[s.name, s.text, s.train] for s in segments])
        written = marshal.dumps((dict(row), rendering))
        self._file.seek(self._ends[-1])
        self._file.write(written)
        self._ends.append(self._ends[-1] + len(written))

    def row(self, place: int) -> dict[str, str]:
        row: dict[str, str] = self._read(place)[0]
        return row

    def rendering(self, place: int) -> str:
        rendering: str = self._read(place)[1]
        return rendering

    def number(self, place: int) -> int:
        return self._numbers[place]

    def _read(self, place: int) -> Any:
        self._file.seek(self._ends[place])
        return marshal.loads(self._file.read(self._ends[place + 1] - self._ends[place]))

    def __len__(self) -> int:
        return len(self._ends) - 1


class ChosenRows(Rows):
    """The rows at some places of others, in the order of the places."""

    def __init__(self, rows: Rows, places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def row(self, place: int) -> Row:
        return self._rows.row(self._places[place])

    def rendering(self, place: int) -> str:
        return self._rows.rendering(self._places[place])

    def number(self, place: int) -> int:
        return self._rows.number(self._places[place])

    def origin(self, place: int) -> str:
        return self._rows.origin(self._places[place])

    def __len__(self) -> int:
        return len(self._places)
