"""Several sources as one: how many rows of each, and in which order."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from fractions import Fraction
from math import floor

from fasttune.config import SourceConfig
from fasttune.data.rows import Rows
from fasttune.data.split import spread
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row

WHERE = "data.sources"


def amounts(sources: Sequence[SourceConfig], available: Sequence[int]) -> list[int]:
    """How many rows to take of each source.

    With weights as many as their shares allow without taking a row twice: no other whole numbers of
    that sum are nearer to the shares (largest remainders). A count is taken as it is; without
    either all rows are.

    Raises:
        FasttuneError: there are fewer rows than a count, or a weight leaves none of a source.
    """
    if sources[0].weight is None:
        for source, have in zip(sources, available, strict=True):
            if source.count is not None and source.count > have:
                raise FasttuneError(
                    f"there are {have} good rows, and {source.count} are to be taken",
                    f"{WHERE}: {source.name}",
                    "lower its count",
                )
        return [
            have if source.count is None else source.count
            for source, have in zip(sources, available, strict=True)
        ]
    weights = [Fraction(source.weight or 0) for source in sources]
    shares = [weight / sum(weights) for weight in weights]
    total = min(floor(have / share) for have, share in zip(available, shares, strict=True))
    taken = [floor(total * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: (taken[at] - total * shares[at], at))
    for at in by_remainder[: total - sum(taken)]:
        taken[at] += 1
    for source, number in zip(sources, taken, strict=True):
        if not number:
            raise FasttuneError(
                "no row of the source is left at this weight",
                f"{WHERE}: {source.name}, of {total} rows in all",
                "give it a larger weight, or counts instead of weights",
            )
    return taken


def order(amounts: Sequence[int]) -> tuple[array[int], array[int]]:
    """For each row of the mix its source, and its place among those taken of it.

    The rows of each source stand at equal distances, so every beginning of the mix holds all
    sources in their shares, to within as many rows as there are sources.
    """
    import numpy as np

    where = np.concatenate([(np.arange(amount) + 0.5) / amount for amount in amounts])
    source = np.repeat(np.arange(len(amounts)), amounts)
    place = np.concatenate([np.arange(amount) for amount in amounts])
    chosen = where.argsort(kind="stable")
    return array("q", source[chosen].tolist()), array("q", place[chosen].tolist())


class MixedRows(Rows):
    """Rows of several sources, those of each at equal distances, in the order of `order`."""

    def __init__(
        self, sources: Sequence[Rows], amounts: Sequence[int], names: Sequence[str]
    ) -> None:
        self._sources, self._names = sources, names
        chosen = [
            array("q", spread(range(len(rows)), amount))
            for rows, amount in zip(sources, amounts, strict=True)
        ]
        self.source, taken = order(amounts)
        pairs = zip(self.source, taken, strict=True)
        self.place = array("q", (chosen[source][at] for source, at in pairs))

    def row(self, place: int) -> Row:
        return self._sources[self.source[place]].row(self.place[place])

    def number(self, place: int) -> int:
        return self._sources[self.source[place]].number(self.place[place])

    def origin(self, place: int) -> str:
        return self._names[self.source[place]]

    def __len__(self) -> int:
        return len(self.source)
