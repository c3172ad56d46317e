"""Several sources as one, each with its share of the rows."""

from __future__ import annotations

import logging
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain

from fasttune.config import SourceConfig
from fasttune.data.load import Loaded
from fasttune.data.rows import ChosenRows, JoinedRows
from fasttune.data.split import spread
from fasttune.errors import FasttuneError

log = logging.getLogger(__name__)


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
        [
            replace(each, source=": ".join(filter(None, (of.source, each.source))))
            for of in loads
            for each in of.findings
        ],
        sum((Counter(each.forms) for each in loads), Counter()),
        sum(each.cut for each in loads),
        {},
        sum((Counter(each.unread) for each in loads), Counter()),
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
