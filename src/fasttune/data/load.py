"""Rows, checked all at once so that a person sees every problem of a file."""

from __future__ import annotations

import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from fasttune.config import DataConfig, SourceConfig
from fasttune.data.check import check_record, propose_columns, require_columns
from fasttune.data.conversations import Turns
from fasttune.data.rows import ChosenRows, JoinedRows, Rows, StoredRows
from fasttune.data.sources import Finding, reader
from fasttune.data.split import digest, divide, spread
from fasttune.errors import FasttuneError
from fasttune.formats.template import Template

log = logging.getLogger(__name__)

SHOWN = 10
FEW = 20
"""Below so many held-out rows, figures on them say little."""


@dataclass(frozen=True)
class Loaded:
    """What a source holds.

    Attributes:
        source: as it was given.
        rows: the good rows, columns mapped, text exactly as it is in the source; columns that the
            template reads are checked, other columns are kept where they hold text.
        digests: of each good row, see `split.digest`.
        findings: all problems, in row order.
        forms: how the good rows are written -> how many are.
        cut: how many of them are the first exchange of more.
        proposed: our column -> theirs, where a column looks like one of ours that there is not.
    """

    source: str
    rows: Rows
    digests: Sequence[int]
    findings: list[Finding]
    forms: Mapping[str, int]
    cut: int
    proposed: Mapping[str, str]

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
        take: all exchanges of a conversation, or the first one.

    Raises:
        FasttuneError: the source cannot be read, it lacks a mapped or required column altogether,
            or none of its rows can be used.
    """
    if limit is not None and limit < 1:
        raise FasttuneError("nothing is to be loaded", f"limit: {limit}", "give 1 or more")
    name, columns = str(source), columns or {}
    if required is None:
        required = template.required if template else ("instruction", "output")
    seen: dict[str, None] = {}
    rows, digests = StoredRows(), array("Q")
    findings: list[Finding] = []
    forms: Counter[str] = Counter()
    cut = detected = 0
    try:
        for number, record in islice(reader(source, split), limit):
            if isinstance(record, dict):
                seen |= dict.fromkeys(record)
            row, problems, talk = check_record(number, record, template, columns, required, take)
            findings += problems
            if row is not None:
                forms[talk.form if talk else "instruction, output"] += 1
                cut += take == "first" and talk is not None and talk.exchanges > 1
                detected += bool(row.language)
                rows.append(row, number)
                digests.append(digest(row, seed))
    except OSError as error:
        raise FasttuneError(
            "cannot read the file",
            f"{name}: {error.strerror or error}",
            "check the path, and who may read it",
        ) from error
    if not rows and not findings:
        raise FasttuneError("there are no rows", name, "give a file with at least one row")
    names = list(seen)
    require_columns(name, names, template, columns, required)
    findings += _repeats(rows, digests)
    findings.sort(key=lambda finding: finding.row)
    proposed = propose_columns(names, columns)
    loaded = Loaded(name, rows, digests, findings, forms, cut, proposed)
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
    return loaded


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
        number = rows.number(at)
        first = seen.setdefault(digests[at], number)
        if first != number:
            yield Finding(number, "", f"repeats row {first}", fatal=False)


@dataclass(frozen=True)
class Divided:
    """The rows of a run, and what they are from: `sources` holds the source of the training rows,
    and that of the held-out rows if it is another."""

    train: Rows
    eval: Rows
    sources: list[Loaded]

    def notes(self, fraction: float) -> list[str]:
        """What a reader of held-out figures has to know; `fraction` is data.eval_fraction."""
        notes, count = [], len(self.eval)
        loaded, *others = self.sources
        trained = {*loaded.digests} if others else set()
        if overlap := sum(digest in trained for other in others for digest in other.digests):
            notes.append(f"{overlap} of {count} held-out rows are training rows as well")
        if count < FEW:
            rows = len(self.train) + count
            wanted = min(0.5, math.ceil(100 * FEW / rows) / 100)
            more = f"data.eval_fraction={wanted:g} holds out about {round(wanted * rows)}"
            advice = more if len(self.sources) == 1 and wanted > fraction else "use more rows"
            few = f"only {count} row{'s are' if count > 1 else ' is'} held out"
            notes.append(f"{few if count else 'no row is held out'}: {advice}")
        return notes


def load_divided(data: DataConfig, template: Template) -> Divided:
    """Read the rows of a run and divide them.

    Without `data.train` these are the shipped rows, held-out part included. With it, `data.eval`
    or `data.eval_split` is the held-out part, or `data.eval_fraction` of the rows are, chosen by a
    hash of the row.

    Rows that cannot be used are left to `Loaded.require_clean`.
    """
    train, held_out, split = data.train, data.eval, data.eval_split or "train"
    if data.sources and train is not None:
        raise FasttuneError(
            "data.train and data.sources are both given", train, "put it among the sources"
        )
    if train is None and not data.sources:
        train, held_out = str(shipped("train")), held_out or str(shipped("heldout"))
    if held_out is None and data.eval_split is not None:
        held_out = train
        if train is None:
            what = "data.eval_split cannot be combined with data.sources"
            raise FasttuneError(what, data.eval_split, "name the held-out rows with data.eval")

    def read(source: SourceConfig, limit: int | None = None) -> Loaded:
        columns, chosen = source.columns or data.columns, source.split or data.split
        seed, take = data.split_seed, data.turns
        return load_rows(source.name, template, columns, chosen, limit, seed=seed, take=take)

    if train is not None:
        loaded = read(SourceConfig(train), data.limit)
        loaded = without_repeats([loaded])[0] if data.drop_duplicates else loaded
    else:
        several = [read(source, data.limit) for source in data.sources]
        loaded = mix(data.sources, without_repeats(several) if data.drop_duplicates else several)
    if held_out:
        other = read(SourceConfig(held_out, split))
        return Divided(loaded.rows, other.rows, [loaded, other])
    left, right = divide(loaded.digests, data.eval_fraction)
    return Divided(ChosenRows(loaded.rows, left), ChosenRows(loaded.rows, right), [loaded])


def without_repeats(sources: Sequence[Loaded]) -> list[Loaded]:
    """The sources without the rows whose digest repeats that of an earlier one, of their own or of
    a source before."""
    import numpy as np

    kept, seen = [], np.zeros(0, np.uint64)
    for loaded in sources:
        digests = np.array(loaded.digests, np.uint64)
        _, first = np.unique(digests, return_index=True)
        first = np.sort(first[~np.isin(digests[first], seen)])
        seen = np.concatenate([seen, digests[first]])
        if dropped := len(digests) - len(first):
            log.info("%s: %d rows that repeat earlier ones are left out", loaded.source, dropped)
        if not first.size:
            raise FasttuneError(
                "every row repeats one of the sources before", loaded.source, "leave it out"
            )
        fatal = [finding for finding in loaded.findings if finding.fatal]
        kept.append(replace(_chosen(loaded, first.tolist()), findings=fatal))
    return kept


def _chosen(loaded: Loaded, places: Iterable[int]) -> Loaded:
    chosen = array("q", places)
    digests = array("Q", (loaded.digests[place] for place in chosen))
    return replace(loaded, rows=ChosenRows(loaded.rows, chosen), digests=digests)


def mix(sources: Sequence[SourceConfig], loads: Sequence[Loaded]) -> Loaded:
    """Several sources as one; the rows of each stand at equal distances, both in their source and
    in the mix. A problem names its source."""
    taken = amounts(sources, [len(loaded.rows) for loaded in loads])
    rows = JoinedRows([each.rows for each in loads], [each.source for each in loads])
    joined = Loaded(
        ", ".join(f"{each.source} ({n} rows)" for each, n in zip(loads, taken, strict=True)),
        rows,
        array("Q", chain.from_iterable(each.digests for each in loads)),
        [replace(each, source=of.source) for of in loads for each in of.findings],
        sum((Counter(each.forms) for each in loads), Counter()),
        sum(each.cut for each in loads),
        {},
    )
    places = [
        start + at
        for start, each, n in zip(rows.starts, loads, taken, strict=False)
        for at in spread(range(len(each.rows)), n)
    ]
    return _chosen(joined, (places[at] for at in interleaved(taken)))


def amounts(sources: Sequence[SourceConfig], available: Sequence[int]) -> list[int]:
    """How many rows to take of each source.

    With weights as many as their shares allow without taking a row twice: no other whole numbers of
    that sum are nearer to the shares (largest remainders). A count is taken as it is; without
    either all rows are.

    Raises:
        FasttuneError: there are fewer rows than a count, or a weight leaves none of a source.
    """
    pairs = list(zip(sources, available, strict=True))
    if sources[0].weight is None:
        for source, have in pairs:
            if source.count is not None and source.count > have:
                raise FasttuneError(
                    f"there are {have} good rows, and {source.count} are to be taken",
                    f"data.sources: {source.name}",
                    "lower its count",
                )
        return [have if source.count is None else source.count for source, have in pairs]
    weights = [Fraction(source.weight or 0) for source in sources]
    shares = [weight / sum(weights) for weight in weights]
    total = min(math.floor(have / share) for have, share in zip(available, shares, strict=True))
    taken = [math.floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: (taken[at] - total * shares[at], at))
    for at in by_remainder[: total - sum(taken)]:
        taken[at] += 1
    if 0 in taken:
        raise FasttuneError(
            "no row of the source is left at this weight",
            f"data.sources: {sources[taken.index(0)].name}, of {total} rows in all",
            "give it a larger weight, or counts instead of weights",
        )
    return taken


def interleaved(amounts: Sequence[int]) -> list[int]:
    """Order the places of `amounts` rows of each source, joined, so that those of each stand at
    equal distances: every beginning holds all sources in their shares, to within as many rows as
    there are sources."""
    import numpy as np

    where = np.concatenate([(np.arange(amount) + 0.5) / amount for amount in amounts])
    order: list[int] = where.argsort(kind="stable").tolist()
    return order


def shipped(part: Literal["train", "heldout"]) -> Path:
    """The file of the data set that comes with fasttune."""
    return Path(__file__).parent / f"facts-{part}.jsonl"


def parse_columns(options: Sequence[str]) -> dict[str, str]:
    """["instruction=question"] -> {"instruction": "question"}."""
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
