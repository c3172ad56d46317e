"""Rows, checked all at once so that a person sees every problem of a file, and their split."""

from __future__ import annotations

import hashlib
import json
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.sources import Finding, Record, count, reader
from fasttune.template import Row, Template, tags_in

CONTENT = ("instruction", "input", "reasoning", "output")
SHOWN = 10
T = TypeVar("T")


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
            f"{self.bad_rows} of {total} rows cannot be used ({count(fatal, 'problem')})",
            where,
            "put them right, or leave them out with data.skip_bad_rows=true",
        )


def load(
    source: str | Path,
    template: Template | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    required: Sequence[str] | None = None,
) -> Loaded:
    """Read and check a source.

    Args:
        source: a .json, .jsonl, .ndjson, .csv, .tsv or .parquet file, a folder written by
            `save_to_disk`, or the name of a dataset on the Hub.
        template: what the rows are for; without it `instruction` and `output` are required.
        columns: our column -> the source's column.
        split: which split of a saved DatasetDict or a Hub dataset; files have none.
        limit: look at no more than this many rows, from the start.
        required: columns that must not be blank, instead of the template's; prompts need fewer.

    Raises:
        FasttuneError: there is no such source, it cannot be read, it lacks a mapped or required
            column altogether, or none of its rows can be used.
    """
    if limit is not None and limit < 1:
        raise FasttuneError("nothing is to be loaded", f"limit: {limit}", "give 1 or more")
    name, columns = str(source), columns or {}
    try:
        records = list(islice(reader(source, split), limit))
    except OSError as error:
        raise FasttuneError("cannot read the file", f"{name}: {error.strerror or error}") from error
    if not records:
        raise FasttuneError("there are no rows", name, "give a file with at least one row")
    required = (template or Template).required if required is None else required
    _require_columns(name, records, template, columns, required)
    loaded = Loaded(name, [], [], [])
    seen: dict[str, int] = {}
    for number, record in records:
        row, findings = _check(number, record, template, columns, required)
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


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances: a sorted file still shows all of its kinds."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


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
    source: str,
    records: Sequence[Record],
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
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
    for column in required:
        if column not in columns and (column not in names or column in columns.values()):
            raise FasttuneError(
                f"no column '{column}'" + (f", which '{template.name}' needs" if template else ""),
                source,
                f"map it, as in --map {column}=THEIRS: {did_you_mean(column, names)}",
            )


def _check(
    number: int,
    record: object,
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
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
