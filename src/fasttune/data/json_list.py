"""Read the rows of a .json file one by one, in constant memory.

Each row is parsed by Python's json, so it has the same values as in JSON Lines. ijson is no
replacement: it refuses NaN, turns escaped lone surrogates into "?", keeps the last of two equal
keys and gives no line in its errors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from fasttune.errors import FasttuneError

CHUNK = 2**20
"""Characters to read at a time; a longer value doubles it."""
CUT = 16
"""An error this close to the end of the buffer may be an incomplete value, such as "tru"."""
BLANKS = " \t\n\r"
AFTER = (*BLANKS, *",:]}")
"""Characters that can follow a complete value."""

Pairs = list[tuple[str, Any]]

ROW = 2**24
"""At most so many bytes or characters in a row."""
COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def kind_of(path: Path) -> str:
    """The suffix that tells the format, without that of a compression."""
    packed = path.suffix.lower() in COMPRESSION
    return (path.with_suffix("") if packed else path).suffix.lower()


def opened(path: Path) -> BinaryIO:
    """Open a text file, which may be compressed. UTF-16 and binary files are refused."""

    def stream() -> BinaryIO:
        if compression := COMPRESSION.get(path.suffix.lower()):
            import pyarrow

            packed = pyarrow.input_stream(str(path), compression=compression)
            return cast(BinaryIO, io.BufferedReader(packed))
        return path.open("rb")

    with stream() as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        kind = "binary" if start == b"\0\0" else "UTF-16"
        raise FasttuneError(f"the file is {kind}, not UTF-8", str(path), "save it as UTF-8")
    return stream()


def too_long(path: Path, place: str) -> FasttuneError:
    return FasttuneError(
        f"a row has more than {ROW // 2**20} MB", f"{path}: {place}", "shorten it, or leave it out"
    )


def decoded_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The number, from 1, and the text of each line, and why it is not UTF-8, or "". Undecodable
    bytes are replaced, so that CSV stays in step."""
    with opened(path) as file:
        lines = iter(lambda: file.readline(ROW + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > ROW:
                raise too_long(path, f"line {number}")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                yield number, line.decode(), ""
            except UnicodeDecodeError as error:
                place = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                yield number, line.decode(errors="replace"), f"is not UTF-8: {place}"


def rows_of(path: Path, make: Callable[[Pairs], dict[str, Any]]) -> Iterator[Any]:
    """Read a file that holds a list, or an object with a list under the key "data". `make` turns
    the pairs of a JSON object into a dict, and may raise ValueError."""
    with io.TextIOWrapper(opened(path), encoding="utf-8-sig", newline="") as file:
        text = _Text(file, path, make)
        start = text.peek()
        if not start:
            return
        has_rows = start == "["
        if has_rows:
            yield from text.elements()
        elif start == "{":
            keys: list[str] = []
            for _ in text.items("{", "}"):
                keys.append(text.key())
                if keys[-1] == "data" and text.peek() == "[" and not has_rows:
                    has_rows = True
                    yield from text.elements()
                else:
                    text.value()
            if len({*keys}) < len(keys):
                raise text.wrong(f"the key {max(keys, key=keys.count)!r} is there twice")
        else:
            text.value()
        if text.peek():
            raise text.wrong("Extra data")
    if not has_rows:
        raise FasttuneError("there is no list of rows", str(path), 'write [...] or {"data": [...]}')


def values_of(path: Path, make: Callable[[Pairs], dict[str, Any]]) -> Iterator[Any]:
    """Read a file that holds one value behind the other, each over any number of lines."""
    with io.TextIOWrapper(opened(path), encoding="utf-8-sig", newline="") as file:
        text = _Text(file, path, make)
        while text.peek():
            yield text.value()
            if text.peek() == ",":
                text.take(",")


class _Text:
    """A parser over a buffer; text that is parsed leaves the buffer."""

    def __init__(self, file: TextIO, path: Path, make: Callable[[Pairs], dict[str, Any]]) -> None:
        self.file, self.path = file, path
        self.scan = json.JSONDecoder(object_pairs_hook=make).raw_decode
        self.buffer, self.at = "", 0
        self.line, self.column = 1, 1

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            while self.at < len(self.buffer):
                if self.buffer[self.at] not in BLANKS:
                    return self.buffer[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        """Skip the next character, which must be one of these."""
        character = self.peek()
        if character not in expected:
            raise self.wrong(f"Expecting {' or '.join(map(repr, expected))}")
        self.at += 1
        return character

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Parse the punctuation of a list or an object; the caller parses each item."""
        self.take(opening)
        if self.peek() == closing:
            self.at += 1
            return
        while True:
            yield
            if self.take(",", closing) == closing:
                return

    def elements(self) -> Iterator[Any]:
        return (self.value() for _ in self.items("[", "]"))

    def key(self) -> str:
        """Parse a key of an object, with its colon."""
        if self.peek() != '"':
            raise self.wrong("Expecting property name enclosed in double quotes")
        key = self.value()
        self.take(":")
        return str(key)

    def value(self) -> Any:
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
            if not cut or not self._more():  # a number may continue
                self.at = end
                return value

    def wrong(self, what: str) -> FasttuneError:
        """The error at the current place."""
        self._drop()
        lines = what == "Extra data"
        hint = "one object per line? then name it .jsonl" if lines else "fix the file"
        where = f"{self.path}: {what}: line {self.line} column {self.column}"
        return FasttuneError("the file is not JSON", where, hint)

    def _more(self) -> bool:
        """Read the next chunk, as long as the buffer; False at the end of the file."""
        if len(self.buffer) - self.at > ROW:
            raise too_long(self.path, f"line {self.line}")
        try:
            chunk = self.file.read(max(CHUNK, len(self.buffer)))
        except UnicodeDecodeError as error:
            lines = ((number, problem) for number, _, problem in decoded_lines(self.path))
            number, problem = next(line for line in lines if line[1])
            where = f"{self.path}: line {number} {problem}"
            raise FasttuneError("the file is not UTF-8", where, "save it as UTF-8") from error
        if chunk:
            self._drop()
            self.buffer += chunk
        return bool(chunk)

    def _drop(self) -> None:
        """Remove the parsed text from the buffer."""
        parsed = self.buffer[: self.at]
        newlines = parsed.count("\n")
        self.line += newlines
        self.column = len(parsed) - parsed.rfind("\n") if newlines else self.column + len(parsed)
        self.buffer, self.at = self.buffer[self.at :], 0
