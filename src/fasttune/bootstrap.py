"""Confidence intervals by resampling: over rows, and over seeds where several ran.

The paired bootstrap of Koehn, "Statistical Significance Tests for Machine Translation Evaluation"
(EMNLP 2004), with percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap",
chapter 13). Where both sides ran with the same seeds, seeds are paired as rows are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

DRAWS = 4000
LEVEL = 0.95
_SEED = 20


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its confidence interval at LEVEL."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Sample:
    """A metric on the same rows for one or several seeds.

    Args:
        amounts: [seeds, rows, 2], amount and weight of every answer; see `Metric.amounts`.
        seeds: what the seeds are called; samples with the same names are resampled together.
    """

    def __init__(self, amounts: Sequence[Sequence[tuple[float, float]]], seeds: Sequence[object]):
        table = np.asarray(amounts, dtype=float)
        self.amount, self.weight = table[..., 0], table[..., 1]
        self.seeds = tuple(seeds)

    def value(self, seed: int | None = None) -> float:
        """The metric over all seeds, or for the seed at that place; NaN where no row counts."""
        at = slice(None) if seed is None else slice(seed, seed + 1)
        weight = self.weight[at].sum()
        return float(self.amount[at].sum() / weight) if weight else math.nan

    @property
    def rows(self) -> int:
        """How many rows count, with any of the seeds."""
        return int((self.weight > 0).any(0).sum())

    def draws(self) -> np.ndarray:
        """[DRAWS] values on resampled seeds and rows; NaN where a draw holds no row that counts."""
        count, rows = self.weight.shape
        of_seeds = _counts(count, hash(self.seeds) if count > 1 else 0)
        of_rows = _counts(rows, 1)
        amount, weight = (_both(table, of_seeds, of_rows) for table in (self.amount, self.weight))
        return np.divide(amount, weight, out=np.full(DRAWS, np.nan), where=weight > 0)


def interval(sample: Sample) -> Interval:
    """The metric with its interval."""
    return _interval(sample.value(), sample.draws())


def difference(left: Sample, right: Sample) -> Interval:
    """left - right on the same rows: each draw takes the same rows on both sides."""
    return _interval(left.value() - right.value(), left.draws() - right.draws())


def _interval(value: float, draws: np.ndarray) -> Interval:
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def _both(table: np.ndarray, of_seeds: np.ndarray, of_rows: np.ndarray) -> np.ndarray:
    """[DRAWS] sums of a [seeds, rows] table under the counts of each draw."""
    return np.einsum("ds,ds->d", of_seeds, of_rows @ table.T)


@cache
def _counts(size: int, stream: int) -> np.ndarray:
    """[DRAWS, size]: how often each draw of `size` from `size` takes each one."""
    generator = np.random.default_rng([_SEED, stream % 2**32])
    return generator.multinomial(size, np.full(size, 1 / size), DRAWS).astype(np.float32)
