"""Files and Hub -> rows; checks; split.

A reader yields (number, record), where a record that could not be read is a `Finding` already;
everything else is checked in one place, so that a person sees all problems of a file at once.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.template import Row, Template, tags_in

CONTENT = ("instruction", "input", "reasoning", "output")
SHOWN = 10


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        row: 1-based row number in its source; in JSONL, CSV and TSV the line where the row begins;
            0 for the whole file.
        column: our name of the column, "" if it is about none.
        message: what is wrong, reading on from row and column.
        fatal: False for a warning, such as a duplicate: the row is used.
    """

    row: int
    column: str
    message: str
    fatal: bool

    def __str__(self) -> str:
        parts = (f"row {self.row}" if self.row else "", self.column)
        return ": ".join([", ".join(filter(None, parts)), self.message]).removeprefix(": ")


Record = tuple[int, Any]
"""A row's number, and the row or the Finding that stands in for it."""


@dataclass(frozen=True)
class Loaded:
    """What a source holds.

    Attributes:
        source: as it was given.
        rows: the good rows, columns mapped, text exactly as it is in the source; columns that the
            template reads are checked, other columns are kept where they hold text.
        numbers: the row number in the source of each good row.
        findings: all problems, in row order.
    """

    source: str
    rows: list[dict[str, str]]
    numbers: list[int]
    findings: list[Finding]

    @property
    def bad_rows(self) -> int:
        """How many rows have a fatal finding."""
        return len({finding.row for finding in self.findings if finding.fatal})

    def require_clean(self, skip_bad_rows: bool) -> None:
        """Insist on a source without fatal findings, or, under `skip_bad_rows`, on one good row.

        Raises:
            FasttuneError: there is a fatal finding, or no row is left.
        """
        fatal = [finding for finding in self.findings if finding.fatal]
        if self.rows and (skip_bad_rows or not fatal):
            return
        shown = [str(finding) for finding in fatal[:SHOWN]]
        if len(fatal) > SHOWN:
            shown.append(f"and {len(fatal) - SHOWN} more")
        where = "\n".join([self.source, *shown])
        if not self.rows:
            raise FasttuneError("no row can be used", where, "put the rows right")
        total = len(self.rows) + self.bad_rows
        raise FasttuneError(
            f"{self.bad_rows} of {total} rows cannot be used ({_count(fatal, 'problem')})",
            where,
            "put them right, or leave them out with data.skip_bad_rows=true",
        )


def load(
    source: str | Path,
    template: Template | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
) -> Loaded:
    """Read and check a source.

    Args:
        source: a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file, a folder written by
            `save_to_disk`, or the name of a dataset on the Hub.
        template: what the rows are for; without it `instruction` and `output` are required.
        columns: our column -> the source's column.
        split: which split of a saved DatasetDict or a Hub dataset; files have none.
        limit: look at no more than this many rows, from the start.

    Raises:
        FasttuneError: there is no such source, it cannot be read, it lacks a mapped or required
            column altogether, or none of its rows can be used.
    """
    if limit is not None and limit < 1:
        raise FasttuneError("nothing is to be loaded", f"limit: {limit}", "give 1 or more")
    name, columns = str(source), columns or {}
    try:
        records = list(islice(_reader(source, split), limit))
    except OSError as error:
        raise FasttuneError("cannot read the file", f"{name}: {error.strerror or error}") from error
    if not records:
        raise FasttuneError("there are no rows", name, "give a file with at least one row")
    _require_columns(name, records, template, columns)
    loaded = Loaded(name, [], [], [])
    seen: dict[str, int] = {}
    for number, record in records:
        row, findings = _check(number, record, template, columns)
        loaded.findings.extend(findings)
        if findings:
            continue
        loaded.rows.append(row)
        loaded.numbers.append(number)
        first = seen.setdefault(_content(row), number)
        if first != number:
            loaded.findings.append(Finding(number, "", f"repeats row {first}", fatal=False))
    loaded.require_clean(skip_bad_rows=True)
    return loaded


def divide(rows: Sequence[Row], eval_fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of the rows for training and for evaluation, each in order.

    A row's side is decided by SHA-256 over the seed and its own instruction, input, reasoning and
    output (over all columns where it has no instruction). So order does not matter, rows and
    columns added later move nothing, and duplicates stay together; the fraction is met on average.

    Raises:
        FasttuneError: `eval_fraction` is not in [0, 1).
    """
    if not 0 <= eval_fraction < 1:
        raise FasttuneError(
            "the eval fraction is not in [0, 1)", str(eval_fraction), "give for instance 0.05"
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for index, row in enumerate(rows):
        digest = hashlib.sha256(f"{seed}\n{_content(row)}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < eval_fraction * 2**64].append(index)
    return sides


def data_hash(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows: their order counts, the order of their columns does not."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(dict(row), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def shipped(part: Literal["train", "heldout"]) -> Path:
    """The file of the data set that comes with fasttune."""
    return Path(__file__).parent / "assets" / f"facts-{part}.jsonl"


def parse_columns(options: Sequence[str]) -> dict[str, str]:
    """["instruction=question"] -> {"instruction": "question"}.

    Raises:
        FasttuneError: an option has no "=", an empty side, or a column that was mapped before.
    """
    columns: dict[str, str] = {}
    for option in options:
        ours, _, theirs = option.partition("=")
        if not ours or not theirs or ours in columns:
            raise FasttuneError(
                f"column '{ours}' is mapped twice" if ours in columns else "this maps no column",
                option,
                "write OURS=THEIRS, for instance instruction=question",
            )
        columns[ours] = theirs
    return columns


def _content(row: Row) -> str:
    """What makes a row itself: equal for duplicates, whatever their ids are."""
    if "instruction" in row:
        return json.dumps([row.get(column, "") for column in CONTENT])
    return json.dumps(dict(row), sort_keys=True)


# Reading


def _reader(source: str | Path, split: str) -> Iterator[Record]:
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise FasttuneError(
                "cannot tell the format of the file", str(source), f"known: {', '.join(READERS)}"
            )
        return READERS[path.suffix.lower()](path)
    if path.is_dir():
        return _saved(path, split)
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


def _lines(path: Path) -> Iterator[tuple[int, str, Finding | None]]:
    """The lines with their ends; undecodable bytes are replaced, so that CSV stays in step."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode(), None
            except UnicodeDecodeError as error:
                what = f"is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
                text = raw.decode(errors="replace")
                yield number, text, Finding(number, "", what, fatal=True)


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line, problem in _lines(path):
        if problem:
            yield number, problem
            continue
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            place = (
                f" at position {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
            )
            what = f"is not JSON: {getattr(error, 'msg', error)}{place}"
            yield number, Finding(number, "", what, fatal=True)


def _json(path: Path) -> Iterator[Record]:
    parts = []
    for number, line, problem in _lines(path):
        if problem:
            raise FasttuneError("the file is not UTF-8", f"{path}: line {number} {problem.message}")
        parts.append(line)
    if not "".join(parts).strip():
        return
    try:
        value = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:
        hint = "one object per line? then name it .jsonl" if "Extra data" in str(error) else ""
        raise FasttuneError("the file is not JSON", f"{path}: {error}", hint) from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise FasttuneError("there is no list of rows", str(path), 'write [...] or {"data": [...]}')
    yield from enumerate(rows, start=1)


def _csv(path: Path) -> Iterator[Record]:
    header: list[str] = []
    for number, cells in _csv_rows(path, "\t" if path.suffix.lower() == ".tsv" else ","):
        if header:
            yield number, _csv_row(number, cells, header)
        elif isinstance(cells, Finding) or len(set(cells)) < len(cells):
            what = cells.message if isinstance(cells, Finding) else "names a column twice"
            raise FasttuneError(f"the header {what}", f"{path}: line {number}")
        else:
            header = cells


def _csv_row(number: int, cells: list[str] | Finding, header: list[str]) -> object:
    if isinstance(cells, Finding) or len(cells) == len(header):
        return cells if isinstance(cells, Finding) else dict(zip(header, cells, strict=True))
    what = f"has {_count(cells, 'cell')}, the header has {len(header)}"
    return Finding(number, "", what, fatal=True)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Finding]]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 kB a cell, is for spreadsheets
    problems: dict[int, Finding] = {}

    def lines() -> Iterator[str]:
        for number, line, problem in _lines(path):
            if problem:
                problems[number] = problem
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Finding(start, "", f"is not CSV: {error}", fatal=True)
            continue
        undecodable = [n for n in range(start, reader.line_num + 1) if n in problems]
        if undecodable or cells:  # an empty list is an empty line
            yield start, problems[undecodable[0]] if undecodable else cells


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
            "give a file, or a folder that save_to_disk of datasets has written",
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

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets, huggingface_hub and the network each have their own
        reason = str(error).strip().partition("\n")[0]
        raise FasttuneError(
            f"'{name}' is no file here, and loading it from the Hub failed",
            f"split {split}: {type(error).__name__}: {reason}",
            "for a file, check the path; for the Hub, check the name, the split and the connection",
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


# Checking


class _Watched(UserDict[str, str]):
    """A row that notes which columns a template reads: only those have to be in order."""

    def __init__(self, row: Row) -> None:
        self.read: dict[str, None] = {}
        super().__init__(row)

    def __getitem__(self, column: str) -> str:
        self.read[column] = None
        return super().__getitem__(column)

    def __contains__(self, column: object) -> bool:
        self.read[str(column)] = None
        return super().__contains__(column)


def _require_columns(
    source: str, records: Sequence[Record], template: Template | None, columns: Mapping[str, str]
) -> None:
    """A column that no row has is one mistake, not one per row."""
    names = list(dict.fromkeys(n for _, row in records if isinstance(row, dict) for n in row))
    if not names:
        return
    for ours, theirs in columns.items():
        if theirs not in names:
            raise FasttuneError(
                f"no column '{theirs}' to take '{ours}' from", source, did_you_mean(theirs, names)
            )
    for column in (template or Template).required:
        if column not in columns and (column not in names or column in columns.values()):
            raise FasttuneError(
                f"no column '{column}'" + (f", which '{template.name}' needs" if template else ""),
                source,
                f"map it, as in --map {column}=THEIRS: {did_you_mean(column, names)}",
            )


def _check(
    number: int, record: object, template: Template | None, columns: Mapping[str, str]
) -> tuple[dict[str, str], list[Finding]]:
    """The row as text, and its fatal findings."""
    if isinstance(record, Finding):
        return {}, [record]
    if not isinstance(record, dict):
        return {}, [Finding(number, "", f"is {_kind(record)}, not an object", fatal=True)]
    moved = {*columns, *columns.values()}
    values = {name: value for name, value in record.items() if name not in moved}
    values |= {ours: record.get(theirs) for ours, theirs in columns.items()}
    row = {name: value for name, value in values.items() if isinstance(value, str)}
    watched = _Watched(row)
    failure = _failure(template, watched) if template else ""
    read = watched.read if template else CONTENT
    required = (template or Template).required
    problems = [
        (column, problem)
        for column in dict.fromkeys((*required, *columns, *read))
        if (problem := _problem(values.get(column), column in required))
    ]
    if template:
        texts = {column: row[column] for column in read if column in row}
        tagged = tags_in(template, texts)
        problems += [(column, f"contains the template's tag {tag}") for column, tag in tagged]
    if failure and not problems:
        problems.append(("", failure))
    return row, [Finding(number, column, problem, fatal=True) for column, problem in problems]


def _failure(template: Template, row: Row) -> str:
    try:
        list(template.segments(row))
    except Exception as error:  # a plugin's own code
        return f"template '{template.name}' fails: {type(error).__name__}: {error}"
    return ""


def _problem(value: object, required: bool) -> str:
    if value is None:
        return "is missing" if required else ""
    if not isinstance(value, str):
        fix = f': write "{value}"' if isinstance(value, int | float) else ""
        return f"is {_kind(value)}, not text{fix}"
    if required and not value.strip():
        return "is empty"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return ""


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, name in ((int | float, "a number"), (str, "a string"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"
