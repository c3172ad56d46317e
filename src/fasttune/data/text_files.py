"""JSON, JSON Lines and CSV files -> numbered records, recognised by what they hold."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from fasttune.data.conversations import holds_messages
from fasttune.data.finding import Finding
from fasttune.data.json_list import decoded_lines, kind_of, rows_of, values_of
from fasttune.errors import FasttuneError

log = logging.getLogger(__name__)

Record = tuple[int, Any]
"""A row's number, and the row or the Finding that stands in for it."""
COLUMNS = 1000
"""At most so many in a row."""
SEPARATORS = (",", ";", "\t", "|")


@cache
def _tell(message: str) -> None:
    """Log a message once: a file is read for the choice of a template, and again for its rows."""
    log.info(message)


def read_json(path: Path) -> Iterator[Record]:
    """The rows of a JSON file: an object per line, a list, or objects over several lines, whatever
    the suffix. Rows are numbered by line if each has one, else by position."""
    starts = (line for _, line, _ in decoded_lines(path) if line.strip())
    first, second = next(starts, ""), next(starts, "")
    lines = kind_of(path) != ".json"
    try:
        value = json.loads(first.rstrip().removesuffix(","))
    except json.JSONDecodeError as error:
        cut = bool(first.strip()) and error.pos >= len(first.rstrip().removesuffix(","))
        if lines and cut:
            _tell(f"{path}: the rows are JSON over several lines, and numbered by position")
            read = rows_of if first.lstrip().startswith("[") else values_of
            return enumerate(read(path, _object), start=1)
    except (ValueError, RecursionError):
        pass
    else:
        if lines and not second and isinstance(value, list) and _are_rows(value):
            lines = False
        elif not lines and second and isinstance(value, dict):
            lines = True
    return _json_lines(path) if lines else enumerate(rows_of(path, _object), start=1)


def _are_rows(values: list[Any]) -> bool:
    """Whether a list holds rows, not the messages of one conversation."""
    return all(isinstance(value, dict) for value in values) and not holds_messages(values)


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line, problem in decoded_lines(path):
        if not line.strip():
            continue
        try:
            text = line.rstrip().removesuffix(",")
            value = None if problem else json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            problem = f"is not JSON: {error.msg} at position {error.pos + 1}"
            if error.msg == "Extra data":
                problem += ": a line holds one object"
        except (ValueError, RecursionError) as error:
            problem = f"is not JSON: {error}"
        yield number, Finding(number, "", problem, fatal=True) if problem else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Of a key that is there twice, a reader would take one and tell nobody."""
    if len(values := dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} is there twice")
    return values


def read_csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB a cell, is for spreadsheets
    undecodable: list[tuple[int, str]] = []

    def lines() -> Iterator[str]:
        for number, line, problem in decoded_lines(path):
            if problem:
                undecodable.append((number, problem))
            yield line

    delimiter, skipped = _delimiter(path)
    rows = csv.reader(islice(lines(), skipped, None), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        start = number = rows.line_num + 1 + skipped
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
            require_few_columns(len(cells), path)
            header = cells


def require_few_columns(count: int, path: Path) -> None:
    if count > COLUMNS:
        where = f"{path}: {count} columns"
        raise FasttuneError(f"a row has more than {COLUMNS} columns", where, "leave some out")


def _delimiter(path: Path) -> tuple[str, int]:
    """The character between the cells of a CSV file, and how many lines come before its header. It
    is a comma, or a tab in .tsv, unless a first line `sep=;` or a header of one cell says more."""
    usual = "\t" if kind_of(path) == ".tsv" else ","
    first = next((line for _, line, _ in decoded_lines(path)), "")
    first = first.partition("\r")[0].removesuffix("\n")
    if first.lower().startswith("sep=") and len(first) == 5:
        return first[4], 1
    counts = {each: len(next(csv.reader([first], delimiter=each), [])) for each in SEPARATORS}
    found = usual if counts[usual] > 1 else max(SEPARATORS, key=lambda each: counts[each])
    if counts[found] < 2 or found == usual:
        return usual, 0
    _tell(f"{path}: the cells are separated by {found!r}")
    return found, 0
