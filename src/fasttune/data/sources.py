"""Files and Hub -> numbered records, before anything is checked.

A reader yields (number, record), where a record that could not be read is a `Finding` already.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.data.json_list import decoded_lines, rows_of
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.terminal import quiet

LOOKAHEAD = 1000
"""Rows by which columns and a template are chosen."""


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


Record = tuple[int, Any]
"""A row's number, and the row or the Finding that stands in for it."""


def reader(source: str | Path, split: str) -> Iterator[Record]:
    """The records of a source, in order."""
    if not str(source).strip() or "\0" in str(source):
        raise FasttuneError(
            "this is no name of a file or data set", repr(str(source)), "give a path or a Hub name"
        )
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise FasttuneError(
                "cannot tell the format of the file",
                str(source),
                f"rename it to end in one of: {', '.join(READERS)}",
            )
        if split != "train":
            raise FasttuneError(
                f"a file has no split '{split}'", str(source), "name the file that holds these rows"
            )
        return READERS[path.suffix.lower()](path)
    if path.is_dir():
        files = [file for file in sorted(path.glob(f"{split}.*")) if file.suffix.lower() in READERS]
        if len(files) > 1:
            named = ", ".join(file.name for file in files)
            raise FasttuneError(
                f"the split '{split}' is there twice", f"{path}: {named}", "name one"
            )
        return READERS[files[0].suffix.lower()](files[0]) if files else _saved(path, split)
    if path.exists() or str(source) == "-":
        raise FasttuneError(
            "rows are read from a file, whose name tells the format",
            f"{source}: a pipe or a device",
            "write them to a file first, as rows.jsonl",
        )
    looks_like_path = str(source).startswith((".", "/", "~")) or "\\" in str(source)
    if isinstance(source, Path) or looks_like_path or path.suffix.lower() in READERS:
        raise _no_such_file(path)
    return _hub(str(source), split)


def _no_such_file(path: Path) -> FasttuneError:
    if not path.parent.is_dir():
        return FasttuneError("no such file", str(path), f"there is no folder {path.parent}")
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else "check the path"
    return FasttuneError("no such file", str(path), hint)


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line, problem in decoded_lines(path):
        if not line.strip():
            continue
        value = None
        try:
            value = None if problem else json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            problem = f"is not JSON: {error.msg} at position {error.pos + 1}"
        except (ValueError, RecursionError) as error:
            problem = f"is not JSON: {error}"
        yield number, Finding(number, "", problem, fatal=True) if problem else value


def _json(path: Path) -> Iterator[Record]:
    yield from enumerate(rows_of(path, _object), start=1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a key that is there twice, a reader would take one and tell nobody."""
    if len(values := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} is there twice")
    return values


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB a cell, is for spreadsheets
    undecodable: list[tuple[int, str]] = []

    def lines() -> Iterator[str]:
        for number, line, problem in decoded_lines(path):
            if problem:
                undecodable.append((number, problem))
            yield line

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = number = rows.line_num + 1
        problem = ""
        undecodable.clear()
        try:
            cells = next(rows)
            if undecodable:
                number, problem = undecodable[0]
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], f"is not CSV: {error}"
        if not cells and not problem:
            continue  # an empty line
        if header:
            if not problem and len(cells) != len(header):
                noun = "cell" if len(cells) == 1 else "cells"
                problem = f"has {len(cells)} {noun}, the header has {len(header)}"
            row = dict(zip(header, cells, strict=False))
            yield start, Finding(number, "", problem, fatal=True) if problem else row
        elif problem or len(set(cells)) < len(cells):
            raise FasttuneError(
                f"the header {problem or 'names a column twice'}",
                f"{path}: line {number}",
                "fix the first line",
            )
        else:
            header = cells


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise FasttuneError("the file is not Parquet", str(path), str(error)) from error


def _saved(folder: Path, split: str) -> Iterator[Record]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the folder holds instead
        raise FasttuneError(
            "the folder holds no data set",
            f"{folder}: {error}",
            "give a file, or a folder that save_to_disk of datasets has written, or one with "
            f"{split}.jsonl or the like in it",
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise FasttuneError(
                f"there is no split '{split}'", str(folder), did_you_mean(split, [*saved])
            )
        saved = saved[split]
    yield from enumerate(saved, start=1)


def _hub(name: str, split: str) -> Iterator[Record]:
    import datasets

    repository, _, configuration = name.partition(":")
    # Without the Hub, datasets tells in a log which copy of its cache it takes.
    silence = quiet() if hub.reach(repository) else nullcontext()
    try:
        with silence:
            rows = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # datasets, huggingface_hub and the network each have their own
        why = f"{type(error).__name__}: {reason(error)}"
        if hub.lacks(repository, error):
            why = f"{hub.why_offline()}, and the cache does not hold the data set"
        raise FasttuneError(
            f"'{name}' is no file here, and loading it from the Hub failed",
            f"split {split}: {why}",
            "for a file, check the path; for the Hub, check the name, the configuration (as in "
            "owner/name:configuration), the split and the connection",
        ) from error
    yield from enumerate(rows, start=1)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
