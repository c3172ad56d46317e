"""Sequences of rows that need a few bytes of memory a row, however long its texts are."""

from __future__ import annotations

import marshal
import os
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from tempfile import SpooledTemporaryFile
from typing import TypeVar, overload

from fasttune.files import cache_dir
from fasttune.formats.row import Row

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
    """Rows of text; equal to any sequence with the same rows."""

    @abstractmethod
    def number(self, place: int) -> int:
        """The number in its source, from 1, of the row at a place."""

    def origin(self, place: int) -> str:
        """Which of several sources or files the row at a place is in; "" where there is but one."""
        return ""

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
        place = str(folder) if os.access(folder, os.W_OK) else None
        self._file = SpooledTemporaryFile(IN_MEMORY, dir=place)  # noqa: SIM115, open while it lives
        self._ends = array("q", [0])
        self._numbers, self._origins = array("q"), array("q")
        self._files: list[str] = []

    def append(self, row: Mapping[str, str], number: int | None = None, file: str = "") -> None:
        """Add a row; its number in its file is by default that of its place here."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._origins.append(len(self._files) - 1)
        self._numbers.append(len(self) + 1 if number is None else number)
        row = Row.of(row)
        written = marshal.dumps((row.as_json(), row.language))
        self._file.seek(self._ends[-1])
        self._file.write(written)
        self._ends.append(self._ends[-1] + len(written))

    def row(self, place: int) -> Row:
        self._file.seek(self._ends[place])
        saved = self._file.read(self._ends[place + 1] - self._ends[place])
        return Row.from_json(*marshal.loads(saved))

    def number(self, place: int) -> int:
        return self._numbers[place]

    def origin(self, place: int) -> str:
        return self._files[self._origins[place]]

    def __len__(self) -> int:
        return len(self._ends) - 1


class JoinedRows(Rows):
    """The rows of several sources, one source behind the other."""

    def __init__(self, sources: Sequence[Rows], names: Sequence[str]) -> None:
        self._sources, self._names = sources, names
        self.starts = [*accumulate(map(len, sources), initial=0)]

    def _source(self, place: int) -> int:
        return bisect_right(self.starts, place) - 1

    def row(self, place: int) -> Row:
        source = self._source(place)
        return self._sources[source].row(place - self.starts[source])

    def number(self, place: int) -> int:
        source = self._source(place)
        return self._sources[source].number(place - self.starts[source])

    def origin(self, place: int) -> str:
        source = self._source(place)
        file = self._sources[source].origin(place - self.starts[source])
        return f"{self._names[source]}: {file}" if file else self._names[source]

    def __len__(self) -> int:
        return self.starts[-1]


class ChosenRows(Rows):
    """The rows at some places of others, in the order of the places."""

    def __init__(self, rows: Rows, places: Sequence[int]) -> None:
        self._rows, self._places = rows, places

    def row(self, place: int) -> Row:
        return self._rows.row(self._places[place])

    def number(self, place: int) -> int:
        return self._rows.number(self._places[place])

    def origin(self, place: int) -> str:
        return self._rows.origin(self._places[place])

    def __len__(self) -> int:
        return len(self._places)
