"""What a comparison of prompt formats found: figures with intervals, differences, a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from fasttune.comparison.bootstrap import Interval, Sample, difference, interval
from fasttune.notebook import framed
from fasttune.plugins.metric import Answer, Metric

REPORT = "report.html"
ENOUGH = 8
"""The least rows a verdict is based on. With fewer, an interval holds the truth too seldom."""


@dataclass(frozen=True)
class Arm:
    """One model that was measured: a format trained with one seed, or the untuned base under it.

    Attributes:
        label: what it is called; the seeds of a format share it.
        base: the label of the format whose untuned model this one began as; mostly its own.
        seed: of the training; None for the untuned base.
        answers: one per held-out row, in the order of the rows, likelihoods included.
        metrics: what was logged in training, as `Run.metrics` gives it; empty for the base.
        facts: further figures for people, as {"steps": 90, "trained tokens": 61000}.
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
    """A metric of one label: over its seeds with the interval, and for each seed.

    Attributes:
        rows: how many rows it means something for.
    """

    interval: Interval
    seeds: dict[str, float]
    rows: int


@dataclass(frozen=True)
class Difference:
    """left - right in one metric.

    Attributes:
        better: the better label, where the metric judges, enough rows count and the interval
            excludes 0.
        rows: how many rows count, on the side that has fewer.
    """

    metric: str
    left: str
    right: str
    interval: Interval
    better: str | None
    rows: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """The whole result.

    Attributes:
        about: what was compared, for people: model, data, budget and the like, in order.
        arms: all arms; those of one label lie together.
        metrics: the metrics that mean something for at least one arm.
        figures: label -> metric name -> figure.
        differences: for every pair of tuned labels, then each tuned label against its base.
        notes: what a reader has to know before trusting the figures.
        folder: where it is kept, with the report.
        groups: column -> its value -> the comparison on the rows with that value alone.
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

    def arms_of(self, label: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.label == label]

    @property
    def rows(self) -> int:
        """How many rows were answered."""
        return len(self.arms[0].answers)

    def counted(self, metric: str) -> str:
        """How many rows a metric counts, as "14 of 77 rows"; empty where it counts all."""
        everywhere = self.rows
        found = sorted({self.figures[label][metric].rows for label in self.labels})
        if found == [everywhere]:
            return ""
        return f"{' to '.join(map(str, found[:1] + found[1:][-1:]))} of {everywhere} rows"

    def pairs(self) -> list[tuple[str, str]]:
        """The (left, right) pairs of labels that have differences, in order."""
        return list(dict.fromkeys((found.left, found.right) for found in self.differences))

    def between(self, left: str, right: str) -> list[Difference]:
        return [found for found in self.differences if (found.left, found.right) == (left, right)]

    @property
    def verdict(self) -> str:
        """The result in plain sentences, a paragraph per pair of labels."""
        return "\n\n".join(self.sentences())

    def sentences(self, tuned_only: bool = False) -> list[str]:
        """The result in plain sentences, one paragraph per pair of labels.

        Args:
            tuned_only: leave out the pairs with an untuned base.
        """
        described = {metric.name: metric for metric in self.metrics}
        tuned = {arm.label for arm in self.arms if arm.tuned}
        paragraphs = []
        for left, right in self.pairs():
            if tuned_only and not {left, right} <= tuned:
                continue
            found = [d for d in self.between(left, right) if described[d.metric].better]
            said = []
            for label, other in ((left, right), (right, left)):
                won = [_sentence(d, label, other, self) for d in found if d.better == label]
                if won:
                    said.append(f"{label} is better than {other} on {'; '.join(won)}.")
            noise = [d.metric for d in found if d.better is None and d.rows >= ENOUGH]
            few = [d.metric for d in found if 0 < d.rows < ENOUGH]
            unknown = [d.metric for d in found if not d.rows]
            if not said:
                said.append(f"Between {left} and {right} nothing is certain.")
            for what, names in (
                ("Within the noise", noise),
                (f"Counted on fewer than {ENOUGH} rows, too few to tell", few),
                ("Not measured on both sides", unknown),
            ):
                if names:
                    said.append(f"{what}: {', '.join(map(_plain, names))}.")
            paragraphs.append(" ".join(said))
        return paragraphs

    @property
    def report(self) -> Path | None:
        """The page for people, where the comparison is kept in a folder."""
        return self.folder and self.folder / REPORT

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.labels)} on {self.rows} rows: {self.verdict}>"

    def _repr_html_(self) -> str:
        from fasttune.comparison.page import to_html

        return framed(to_html(self))


def compare_arms(
    about: Mapping[str, str],
    arms: Sequence[Arm],
    metrics: Sequence[Metric],
    notes: Sequence[str],
    folder: Path | None = None,
) -> Comparison:
    """Take all metrics on all arms, with intervals and differences."""
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
    """The comparison on the rows with each value of a column alone, values in order. Rows without
    the column are in none."""
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
    found, rows = difference(ours, theirs), min(ours.rows, theirs.rows)
    better = None
    if metric.better and found.excludes_zero and rows >= ENOUGH:
        better = left if (found.value > 0) == (metric.better == "higher") else right
    return Difference(metric.name, left, right, found, better, rows)


def _plain(metric: str) -> str:
    return metric.replace("_", " ")


def _sentence(found: Difference, label: str, other: str, comparison: Comparison) -> str:
    ours, theirs = (
        comparison.figures[name][found.metric].interval.value for name in (label, other)
    )
    low, high = sorted((abs(found.interval.low), abs(found.interval.high)))
    return f"{_plain(found.metric)} ({ours:.3g} against {theirs:.3g}; by {low:.2g} to {high:.2g})"
