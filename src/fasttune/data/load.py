"""Rows, checked all at once so that a person sees every problem of a file."""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from fasttune.data.check import check_record, require_columns
from fasttune.data.conversations import Turns, holds_messages
from fasttune.data.finding import Finding
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.sources import readers
from fasttune.data.split import digest
from fasttune.data.suggest import propose_columns
from fasttune.errors import FasttuneError
from fasttune.formats.template import Template

log = logging.getLogger(__name__)

SHOWN = 10


@dataclass(frozen=True)
class Loaded:
    """What a source holds.

    Attributes:
        rows: the good rows, columns mapped, text exactly as it is in the source; columns that the
            template does not read are kept where they hold text.
        forms: how the good rows are written -> how many are.
        cut: how many of them are the first exchange of more.
        proposed: our column -> theirs, where a column looks like one of ours that there is not.
        unread: what the template does not read, a column or a key of messages -> how many of the
            good rows hold something there.
    """

    source: str
    rows: Rows
    digests: Sequence[int]
    findings: list[Finding]
    forms: Mapping[str, int]
    cut: int
    proposed: Mapping[str, str]
    unread: Mapping[str, int]

    @property
    def bad_rows(self) -> int:
        """How many rows have a fatal finding."""
        return len({(each.source, each.row) for each in self.findings if each.fatal})

    def require_clean(self, skip_bad_rows: bool) -> None:
        """Refuse a source with a fatal finding, unless `skip_bad_rows`, or without a good row."""
        fatal = [finding for finding in self.findings if finding.fatal]
        if self.rows and (skip_bad_rows or not fatal):
            return
        shown = [str(finding) for finding in fatal[:SHOWN]]
        if len(fatal) > SHOWN:
            shown.append(f"and {len(fatal) - SHOWN} more")
        where = "\n".join([self.source, *shown])
        if not self.rows:
            raise FasttuneError("no row can be used", where, "fix these rows")
        total = len(self.rows) + self.bad_rows
        raise FasttuneError(
            f"{self.bad_rows} of {total} rows cannot be used "
            f"({len(fatal)} problem{'s' * (len(fatal) != 1)})",
            where,
            "fix these rows, or skip them with data.skip_bad_rows=true",
        )


def load_rows(
    source: str | Path,
    template: Template | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    required: Sequence[str] | None = None,
    seed: int = 0,
    take: Turns = "all",
) -> Loaded:
    """Read and check a source, row by row.

    Args:
        source: a file, a folder written by `save_to_disk`, or the name of a data set on the Hub.
        template: what the rows are for; without it `instruction` and `output` are required.
        columns: our column -> the source's column.
        limit: the number of rows to look at, from the start.
        required: columns that must not be blank, instead of the template's; prompts need fewer.
        seed: of the digests.
    """
    if limit is not None and limit < 1:
        raise FasttuneError("nothing is to be loaded", f"limit: {limit}", "give 1 or more")
    name, columns = str(source), columns or {}
    if required is None:
        required = template.required if template else ("instruction", "output")
    seen, spoken = dict[str, None](), dict[str, None]()
    rows, digests = StoredRows(), array("Q")
    findings: list[Finding] = []
    forms, unread, foreign = Counter[str](), Counter[str](), Counter[str]()
    cut = detected = 0
    files = readers(source, split)
    if len(files) > 1:
        log.info("%s: rows from %s", name, ", ".join(file for file, _ in files))
    every = ((file, *record) for file, records in files for record in records)
    for file, number, record in islice(every, limit):
        if isinstance(record, dict):
            seen |= dict.fromkeys(record)
            spoken |= dict.fromkeys(name for name in record if holds_messages(record[name]))
        row, problems, talk, ignored = check_record(
            number, record, template, columns, required, take
        )
        findings += [replace(each, source=file) for each in problems] if file else problems
        if row is not None:
            unread.update(ignored)
            if template and (language := template.foreign_language(row)):
                foreign[language] += 1
            forms[talk.form if talk else "instruction, output"] += 1
            cut += take == "first" and talk is not None and talk.exchanges > 1
            detected += bool(row.language)
            rows.append(row, number, file)
            digests.append(digest(row, seed))
    if not rows and not findings:
        raise FasttuneError("there are no rows", name, "give a file with at least one row")
    names = list(seen)
    require_columns(name, names, template, columns, required, [*spoken])
    findings += _repeats(rows, digests)
    findings.sort(key=lambda finding: (finding.source, finding.row))
    proposed = propose_columns(names, columns)
    loaded = Loaded(name, rows, digests, findings, forms, cut, proposed, unread)
    loaded.require_clean(skip_bad_rows=True)
    if cut:
        log.info(
            "%s: data.turns takes the first exchange alone of %d of %d rows", name, cut, len(rows)
        )
    if detected:
        log.info(
            "%s: the language of %d of %d rows was detected: they have no column 'language'",
            name, detected, len(rows),
        )  # fmt: skip
    if template and foreign:
        log.warning(
            "warning: %s: %s has no text in the language of %d of %d rows: %s; default text used",
            name, template.name, foreign.total(), len(rows), counted(foreign),
        )  # fmt: skip
    return loaded


def counted(counts: Mapping[str, int]) -> str:
    """Names with their counts, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common())


def _repeats(rows: Rows, digests: array[int]) -> Iterator[Finding]:
    """A warning for each row that repeats an earlier one.

    A set of a million digests takes 100 MB, sorting them takes 16 bytes a row. That two of a
    million different rows share 64 bits happens once in 37 million data sets.
    """
    import numpy as np

    values = np.array(digests, np.uint64)
    order = values.argsort(kind="stable")
    alike = values[order[1:]] == values[order[:-1]]
    seen: dict[int, int] = {}
    for at in np.union1d(order[:-1][alike], order[1:][alike]).tolist():
        first = seen.setdefault(digests[at], at)
        if first != at:
            file = rows.origin(first)
            what = f"repeats row {rows.number(first)}" + (f" of {file}" if file else "")
            yield Finding(rows.number(at), "", what, fatal=False, source=rows.origin(at))


def shipped(part: Literal["train", "heldout"]) -> Path:
    """The file of the data set that comes with fasttune."""
    return Path(__file__).parent / f"facts-{part}.jsonl"


def parse_columns(options: Sequence[str]) -> dict[str, str]:
    """["instruction=question"] -> {"instruction": "question"}. One option may hold several pairs,
    as in "instruction=question,output=answer"."""
    columns: dict[str, str] = {}
    for option in chain.from_iterable(re.split(r",(?=\w+=)", option) for option in options):
        ours, _, theirs = option.partition("=")
        if not ours or not theirs or ours in columns:
            raise FasttuneError(
                f"column '{ours}' is mapped twice" if ours in columns else "this maps no column",
                option,
                "write OURS=THEIRS, for instance instruction=question",
            )
        columns[ours] = theirs
    return columns
