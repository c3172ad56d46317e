"""Confidence intervals by resampling: over rows, and over seeds where several ran.

The paired bootstrap of Koehn, "Statistical Significance Tests for Machine Translation Evaluation"
(EMNLP 2004). Percentile intervals are too narrow on few rows, so they are expanded as Hesterberg
does, "What Teachers Should Know About the Bootstrap" (The American Statistician 69, 2015). Where
both sides ran with the same seeds, seeds are paired as rows are. Two or three seeds are too few for
any resampling, so an interval also reaches as far as Student's for the seeds' own values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, stdev
from typing import Any

import msgspec
import numpy as np

DRAWS = 4000
LEVEL = 0.95
_SEED = 20
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds of its confidence interval at LEVEL."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def is_point(self) -> bool:
        """Whether all rows and seeds give the same: the bounds are no estimate then."""
        return self.low == self.high


def as_json(figure: Any) -> dict[str, Any]:
    """Return the fields of a figure and of its interval, with null for NaN."""
    values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(figure))
    interval = values.pop("interval")
    return {**values, **interval}


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

    def value(self) -> float:
        """The metric over all seeds; NaN where no row counts."""
        return _ratio(self.amount, self.weight)

    def by_seed(self) -> list[float]:
        """The metric of each seed; NaN where no row counts."""
        return [_ratio(*of_seed) for of_seed in zip(self.amount, self.weight, strict=True)]

    @property
    def rows(self) -> int:
        """How many rows count, with any of the seeds."""
        return int((self.weight > 0).any(0).sum())

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest of what single answers give: no figure lies beyond."""
        counts = self.weight > 0
        single = self.amount[counts] / self.weight[counts]
        return (float(single.min()), float(single.max())) if single.size else (math.nan, math.nan)

    def draws(self) -> np.ndarray:
        """[DRAWS] values on resampled seeds and rows; NaN where a draw holds no row that counts."""
        count, rows = self.weight.shape
        of_seeds = _counts(count, hash(self.seeds) if count > 1 else 0)
        of_rows = _counts(rows, 1)
        amount, weight = (
            np.einsum("ds,ds->d", of_seeds, of_rows @ table.T)
            for table in (self.amount, self.weight)
        )
        return np.divide(amount, weight, out=np.full(DRAWS, np.nan), where=weight > 0)


def interval(sample: Sample) -> Interval:
    """The metric with its interval."""
    reach = _of_seeds(sample.by_seed())
    return _interval(sample.value(), sample.draws(), sample.rows, reach, sample.bounds)


def difference_interval(left: Sample, right: Sample) -> Interval:
    """left - right on the same rows: each draw takes the same rows on both sides."""
    rows = min(left.rows, right.rows)
    value, draws = left.value() - right.value(), left.draws() - right.draws()
    if left.seeds == right.seeds:
        pairs = zip(left.by_seed(), right.by_seed(), strict=True)
        reach = _of_seeds([ours - theirs for ours, theirs in pairs])
    else:
        reach = math.hypot(_of_seeds(left.by_seed()), _of_seeds(right.by_seed()))
    (low, high), (other_low, other_high) = left.bounds, right.bounds
    return _interval(value, draws, rows, reach, (low - other_high, high - other_low))


def _ratio(amount: np.ndarray, weight: np.ndarray) -> float:
    total = weight.sum()
    return float(amount.sum() / total) if total else math.nan


def _interval(
    value: float, draws: np.ndarray, rows: int, reach: float, bounds: tuple[float, float]
) -> Interval:
    """Return the interval of the draws, or `value` plus and minus `reach` if that is wider, within
    the bounds."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return Interval(value, math.nan, math.nan)
    tail = (1 - LEVEL) / 2
    if rows > 1:
        tail = NormalDist().cdf(-math.sqrt(rows / (rows - 1)) * _student(rows - 1))
    low, high = np.quantile(draws, [tail, 1 - tail])
    low, high = min(float(low), value - reach), max(float(high), value + reach)
    return Interval(value, max(low, bounds[0]), min(high, bounds[1]))


def _of_seeds(values: Sequence[float]) -> float:
    """Half the width of Student's interval for the mean of what each seed gave."""
    if len(values) < 2 or any(map(math.isnan, values)):
        return 0.0
    return _student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _student(freedom: int) -> float:
    """Student's t at LEVEL, two-sided: a table, beyond it Abramowitz and Stegun, 26.7.5."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


@cache
def _counts(size: int, stream: int) -> np.ndarray:
    """[DRAWS, size]: how often each draw of `size` from `size` takes each one."""
    generator = np.random.default_rng([_SEED, stream % 2**32])
    return generator.multinomial(size, np.full(size, 1 / size), DRAWS).astype(np.float32)
