"""The rows of a .json file one after another: of the file only the row at hand is in memory.

The values are those of Python's json, as of a line of JSON Lines: a row means the same in both.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fasttune.errors import FasttuneError

CHUNK = 2**20
"""Bytes read at a time; more only within a value that is longer."""
CUT = 16
"""An error so near to the end of what was read may be for want of the rest, as of "tru"."""
BLANKS = " \t\n\r"
AFTER = (*BLANKS, *",:]}")
"""What stands behind a value that is whole."""

Pairs = list[tuple[str, Any]]


def rows_of(path: Path, make: Callable[[Pairs], dict[str, Any]]) -> Iterator[Any]:
    """The elements of the list that a file holds, or of the list under its key "data".

    Args:
        make: an object of its pairs; ValueError where these are none.

    Raises:
        FasttuneError: the file is not UTF-8, not JSON, or holds no list of rows.
    """
    with path.open("rb") as file:
        text = _Text(file, path, make)
        start = text.peek()
        if not start:
            return
        found = start == "["
        if found:
            yield from text.elements()
        elif start == "{":
            keys = []
            for key in text.keys():  # noqa: SIM118, no mapping
                keys.append(key)
                if key == "data" and text.peek() == "[" and not found:
                    found = True
                    yield from text.elements()
                else:
                    text.value()
            if len({*keys}) < len(keys):
                raise text.wrong(f"the key {max(keys, key=keys.count)!r} is there twice")
        else:
            text.value()
        if text.peek():
            raise text.wrong("Extra data")
    if not found:
        raise FasttuneError("there is no list of rows", str(path), 'write [...] or {"data": [...]}')


class _Text:
    """The text of a file, of which what was read is dropped."""

    def __init__(self, file: BinaryIO, path: Path, make: Callable[[Pairs], dict[str, Any]]) -> None:
        self.file, self.path = file, path
        self.scan = json.JSONDecoder(object_pairs_hook=make).raw_decode
        self.decode = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer, self.at = "", 0
        self.line, self.column = 1, 1
        self.ended = False

    def peek(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in BLANKS:
                    return self.buffer[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        """Go past the next character, which has to be one of these."""
        found = self.peek()
        if found not in expected or not found:
            raise self.wrong(f"Expecting {' or '.join(map(repr, expected))}")
        self.at += 1
        return found

    def elements(self) -> Iterator[Any]:
        """The values of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def keys(self) -> Iterator[str]:
        """The keys of the object that comes next; whoever asks takes the value of each."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                raise self.wrong("Expecting property name enclosed in double quotes")
            key = self.value()
            self.take(":")
            yield key
            if self.take(",", "}") == "}":
                return

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self.scan(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - CUT
                if cut and self._more():
                    continue
                self.at = error.pos
                raise self.wrong(error.msg) from error
            except (ValueError, RecursionError) as error:
                raise self.wrong(str(error)) from error
            cut = end > len(self.buffer) - CUT and self.buffer[end : end + 1] not in AFTER
            if not cut or not self._more():  # a number may go on
                self.at = end
                return value

    def wrong(self, what: str) -> FasttuneError:
        """What is wrong, and where."""
        self._drop()
        lines = what == "Extra data"
        hint = "one object per line? then name it .jsonl" if lines else "put the file right"
        where = f"{self.path}: {what}: line {self.line} column {self.column}"
        return FasttuneError("the file is not JSON", where, hint)

    def _more(self) -> bool:
        """Read on, twice as much where a value is long; False at the end of the file."""
        if self.ended:
            return False
        self._drop()
        read = self.file.read(max(CHUNK, len(self.buffer)))
        self.ended = not read
        try:
            self.buffer += self.decode.decode(read, final=not read)
        except UnicodeDecodeError as error:
            raise self._no_utf8(error) from error
        return True

    def _drop(self) -> None:
        done = self.buffer[: self.at]
        newlines = done.count("\n")
        self.line += newlines
        self.column = len(done) - done.rfind("\n") if newlines else self.column + len(done)
        self.buffer, self.at = self.buffer[self.at :], 0

    def _no_utf8(self, error: UnicodeDecodeError) -> FasttuneError:
        left = self.file.tell() - len(error.object) + error.start  # what could not be read is last
        self.file.seek(0)
        line = position = 1
        while block := self.file.read(min(left, CHUNK)):
            left -= len(block)
            line += block.count(b"\n")
            position = len(block) - block.rfind(b"\n") if b"\n" in block else position + len(block)
        what = f"is not UTF-8: byte 0x{error.object[error.start]:02x} at position {position}"
        return FasttuneError(
            "the file is not UTF-8", f"{self.path}: line {line} {what}", "save it as UTF-8"
        )
