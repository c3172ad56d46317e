"""The result of a comparison: figures with intervals, differences and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from fasttune.comparison.bootstrap import Interval, Sample, difference, interval
from fasttune.notebook import framed
from fasttune.plugins.metric import Answer, Metric

REPORT = "report.html"
ENOUGH = 8
"""Minimum number of rows for a verdict. With fewer, intervals are too narrow."""


@dataclass(frozen=True)
class Arm:
    """One measured model: a format trained with one seed, or its untuned base.

    Attributes:
        label: name of the arm; all seeds of a format share it.
        base: label of the format whose untuned model this arm started from, usually its own.
        seed: seed of the training; None for the untuned base.
        answers: one per held-out row, in row order, with likelihoods.
        metrics: the training log, as `Run.metrics` returns it; empty for the base.
        facts: figures about the training, such as {"steps": 90, "trained tokens": 61000}.
    """

    label: str
    base: str
    seed: int | None
    answers: Sequence[Answer]
    metrics: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] | None = None

    @property
    def tuned(self) -> bool:
        return self.seed is not None


@dataclass(frozen=True)
class Figure:
    """A metric of one label.

    Attributes:
        interval: the value over all seeds, with its confidence interval.
        seeds: the value of each seed.
        rows: number of rows the metric counts.
    """

    interval: Interval
    seeds: dict[str, float]
    rows: int


@dataclass(frozen=True)
class Difference:
    """left - right in one metric.

    Attributes:
        better: the better label; None if the metric has no direction, too few rows count, or the
            interval contains 0.
        rows: number of rows that count, on the side with fewer.
    """

    metric: str
    left: str
    right: str
    interval: Interval
    better: str | None
    rows: int

    @property
    def too_few_rows(self) -> bool:
        return self.rows < ENOUGH


@dataclass(frozen=True, repr=False)
class Comparison:
    """The whole result.

    Attributes:
        about: what was compared, for the reader: model, data, budget and so on, in order.
        arms: all arms, grouped by label.
        metrics: the metrics that at least one arm has a value for.
        figures: label -> metric name -> figure.
        differences: for every pair of tuned labels, then each tuned label minus its base.
        notes: caveats to read before the figures.
        folder: the folder of the comparison, with the report; None if it was not saved.
        groups: column -> value -> the comparison on the rows with that value.
    """

    about: Mapping[str, str]
    arms: Sequence[Arm]
    metrics: Sequence[Metric]
    figures: Mapping[str, Mapping[str, Figure]]
    differences: Sequence[Difference]
    notes: Sequence[str]
    folder: Path | None = None
    groups: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(arm.label for arm in self.arms))

    @property
    def tuned_labels(self) -> list[str]:
        return list(dict.fromkeys(arm.label for arm in self.arms if arm.tuned))

    def arms_of(self, label: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.label == label]

    @property
    def rows(self) -> int:
        """Number of rows that were answered."""
        return len(self.arms[0].answers)

    def counted(self, metric: str) -> str:
        """Return how many rows a metric counts, such as "14 of 77 rows"; "" if it counts all."""
        counts = sorted({self.figures[label][metric].rows for label in self.labels})
        if counts == [self.rows]:
            return ""
        return f"{' to '.join(map(str, counts[:1] + counts[1:][-1:]))} of {self.rows} rows"

    def pairs(self, *, tuned: bool | None = None) -> list[tuple[str, str]]:
        """Return the (left, right) pairs of labels that have differences, in order.

        Args:
            tuned: True for the pairs of two tuned labels only, False for the others only.
        """
        pairs = dict.fromkeys((each.left, each.right) for each in self.differences)
        return [pair for pair in pairs if tuned in (None, {*pair} <= {*self.tuned_labels})]

    def between(self, left: str, right: str) -> list[Difference]:
        return [each for each in self.differences if (each.left, each.right) == (left, right)]

    @property
    def verdict(self) -> str:
        """The result in plain sentences, one paragraph per pair of labels."""
        return "\n\n".join(self.sentences())

    def sentences(self, tuned_only: bool = False) -> list[str]:
        """Return the result in plain sentences, one paragraph per pair of labels.

        Args:
            tuned_only: leave out the pairs with an untuned base.
        """
        return [self.sentence(*pair) for pair in self.pairs(tuned=True if tuned_only else None)]

    def sentence(self, left: str, right: str) -> str:
        """Return the result for one pair of labels in plain sentences."""
        directed = {metric.name for metric in self.metrics if metric.better}
        judged = [each for each in self.between(left, right) if each.metric in directed]
        parts = [
            f"{label} is better than {other} on {', '.join(_in_words(won, label, other, self))}."
            for label, other in ((left, right), (right, left))
            if (won := [each for each in judged if each.better == label])
        ]
        parts = parts or [f"no significant difference between {left} and {right}."]
        parts[0] = f"On {_count(self.rows, 'row')} with {self._seeds(left, right)}: {parts[0]}"
        undecided = {
            "Not significant": [each for each in judged if not (each.better or each.too_few_rows)],
            f"Counted on fewer than {ENOUGH} rows, too few to tell": [
                each for each in judged if each.rows and each.too_few_rows
            ],
            "Not measured on both sides": [each for each in judged if not each.rows],
        }
        parts += [
            f"{heading}: {', '.join(_plain(each.metric) for each in differences)}."
            for heading, differences in undecided.items()
            if differences
        ]
        return " ".join(parts)

    def _seeds(self, *labels: str) -> str:
        """Say with how many seeds the tuned ones of some labels were trained."""
        seeds = {
            label: _count(len(self.arms_of(label)), "seed")
            for label in labels
            if label in self.tuned_labels
        }
        if len({*seeds.values()}) == 1:
            return next(iter(seeds.values()))
        return " and ".join(f"{count} of {label}" for label, count in seeds.items())

    @property
    def report(self) -> Path | None:
        """The HTML report; None if the comparison was not saved."""
        return self.folder and self.folder / REPORT

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.labels)} on {self.rows} rows: {self.verdict}>"

    def _repr_html_(self) -> str | None:
        if not (self.report and self.report.is_file()):
            return None  # Jupyter shows the repr instead
        return framed(self.report.read_text(encoding="utf-8"))


def compare_arms(
    about: Mapping[str, str],
    arms: Sequence[Arm],
    metrics: Sequence[Metric],
    notes: Sequence[str],
    folder: Path | None = None,
) -> Comparison:
    """Compute every metric on every arm, with intervals and differences."""
    samples: dict[str, dict[str, Sample]] = {}
    for label in dict.fromkeys(arm.label for arm in arms):
        group = [arm for arm in arms if arm.label == label]
        seeds = [arm.seed for arm in group]
        samples[label] = {
            metric.name: Sample([metric.amounts(arm.answers) for arm in group], seeds)
            for metric in metrics
        }
    used = [
        metric
        for metric in metrics
        if any(not math.isnan(of_label[metric.name].value()) for of_label in samples.values())
    ]
    figures = {
        label: {metric.name: _figure(of_label[metric.name]) for metric in used}
        for label, of_label in samples.items()
    }
    differences = [
        _difference(metric, left, right, samples) for left, right in _pairs(arms) for metric in used
    ]
    return Comparison(about, arms, used, figures, differences, notes, folder)


def split(comparison: Comparison, column: str) -> dict[str, Comparison]:
    """Return value -> the comparison on the rows with that value in a column, sorted by value.

    Rows without a value in the column are left out.
    """
    values = [answer.row.get(column) for answer in comparison.arms[0].answers]
    groups = {}
    for value in sorted({value for value in values if value}):
        arms = [
            replace(
                arm, answers=[a for a, of in zip(arm.answers, values, strict=True) if of == value]
            )
            for arm in comparison.arms
        ]
        groups[value] = compare_arms({}, arms, comparison.metrics, [])
    return groups


def _figure(sample: Sample) -> Figure:
    seeds = dict(zip(map(str, sample.seeds), sample.by_seed(), strict=True))
    return Figure(interval(sample), seeds, sample.rows)


def _pairs(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    tuned = list(dict.fromkeys(arm.label for arm in arms if arm.tuned))
    untuned = {arm.base: arm.label for arm in arms if not arm.tuned}
    base = {arm.label: arm.base for arm in arms}
    against_base = [(label, untuned[base[label]]) for label in tuned if base[label] in untuned]
    return [*combinations(tuned, 2), *against_base]


def _difference(
    metric: Metric, left: str, right: str, samples: Mapping[str, Mapping[str, Sample]]
) -> Difference:
    ours, theirs = samples[left][metric.name], samples[right][metric.name]
    bounds, rows = difference(ours, theirs), min(ours.rows, theirs.rows)
    better = None
    if metric.better and bounds.excludes_zero and rows >= ENOUGH:
        better = left if (bounds.value > 0) == (metric.better == "higher") else right
    return Difference(metric.name, left, right, bounds, better, rows)


def _in_words(
    differences: Sequence[Difference], label: str, other: str, comparison: Comparison
) -> Iterator[str]:
    """Yield "metric (value vs. value, CI low to high)" for each; the first spells out the CI."""
    meaning = "95% CI of the difference"
    for each in differences:
        ours, theirs = (
            comparison.figures[name][each.metric].interval.value for name in (label, other)
        )
        bounds = sorted((abs(each.interval.low), abs(each.interval.high)))
        low, high = (f"{bound:.2g}" for bound in bounds)
        yield f"{_plain(each.metric)} ({ours:.3g} vs. {theirs:.3g}, {meaning} {low} to {high})"
        meaning = "CI"


def _plain(metric: str) -> str:
    return metric.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"
