"""The result of a comparison: figures with intervals, differences and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, compress
from pathlib import Path
from typing import Any

from fasttune.comparison.bootstrap import (
    Interval,
    Sample,
    as_json,
    difference_interval,
    interval,
)
from fasttune.pages import framed
from fasttune.plugins.metric import Answer, Metric, as_dict

REPORT = "report.html"
ENOUGH = 8
"""Minimum number of rows for a verdict. With fewer, intervals are too narrow."""


@dataclass(frozen=True)
class Arm:
    """One measured model: a format trained with one seed, or its untuned base."""

    label: str  # its name, which all seeds of a format share
    base: str  # label of the format whose untuned model it started from, usually its own
    seed: int | None  # of the training; None for the untuned base
    answers: Sequence[Answer]  # one per held-out row, in row order, with likelihoods
    metrics: Sequence[Mapping[str, Any]] = ()  # the training log, as `Run.metrics` returns it
    facts: Mapping[str, Any] = field(default_factory=dict)  # on the training, as {"steps": 90}

    @property
    def tuned(self) -> bool:
        return self.seed is not None


@dataclass(frozen=True)
class Figure:
    """A metric of one label: over all seeds, of each seed, and the number of rows it counts."""

    interval: Interval
    seeds: dict[str, float]
    rows: int


@dataclass(frozen=True)
class Difference:
    """left - right in one metric."""

    metric: str
    left: str
    right: str
    interval: Interval
    better: str | None  # a label; None without direction, with too few rows, or if 0 is possible
    rows: int  # that count, on the side with fewer

    @property
    def too_few_rows(self) -> bool:
        return self.rows < ENOUGH


@dataclass(frozen=True, repr=False)
class Comparison:
    """The whole result.

    Attributes:
        about: what was compared, for the reader, such as the model and the rows.
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
        """Return the (left, right) pairs of labels that have differences, in order: those of two
        tuned labels (True), the others (False), or all (None)."""
        pairs = dict.fromkeys((each.left, each.right) for each in self.differences)
        return [pair for pair in pairs if tuned in (None, {*pair} <= {*self.tuned_labels})]

    def between(self, left: str, right: str) -> list[Difference]:
        return [each for each in self.differences if (each.left, each.right) == (left, right)]

    def differences_in(self, metric: str, tuned: bool) -> list[Difference]:
        """Return a metric's differences between tuned labels, or those from an untuned base."""
        pairs = self.pairs(tuned=tuned)
        return [d for d in self.differences if d.metric == metric and (d.left, d.right) in pairs]

    @property
    def verdict(self) -> str:
        """The result in plain sentences, one paragraph per pair of labels."""
        return "\n\n".join(self.sentences())

    def sentences(self, tuned_only: bool = False) -> list[str]:
        """Return the verdict's paragraphs, or only those without an untuned base."""
        return [self.sentence(*pair) for pair in self.pairs(tuned=True if tuned_only else None)]

    def sentence(self, left: str, right: str) -> str:
        """Return the verdict on one pair of labels."""
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

    def as_dict(self) -> dict[str, Any]:
        """Return the whole result as JSON values: figures with intervals, per seed and per row."""
        return {
            "about": dict(self.about),
            "notes": list(self.notes),
            "verdict": self.sentences(),
            "metrics": [
                {"name": each.name, "description": each.description, "better": each.better}
                for each in self.metrics
            ],
            **self._measured(),
            "by": {
                column: {
                    value: {"rows": group.rows, **group._measured()}
                    for value, group in groups.items()
                }
                for column, groups in self.groups.items()
            },
            "rows": [dict(answer.row) for answer in self.arms[0].answers],
            "arms": [
                {
                    "label": arm.label,
                    "seed": arm.seed,
                    **arm.facts,
                    "answers": [*map(as_dict, arm.answers)],
                }
                for arm in self.arms
            ],
        }

    def _measured(self) -> dict[str, Any]:
        return {
            "figures": {
                label: {name: as_json(figure) for name, figure in figures.items()}
                for label, figures in self.figures.items()
            },
            "differences": [*map(as_json, self.differences)],
        }

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.labels)} on {self.rows} rows: {self.verdict}>"

    def _repr_html_(self) -> str | None:
        if not (self.report and self.report.is_file()):
            return None  # Jupyter shows the repr instead
        return framed(self.report.read_text(encoding="utf-8"))


def measure_arms(
    about: Mapping[str, str],
    arms: Sequence[Arm],
    metrics: Sequence[Metric],
    notes: Sequence[str],
    folder: Path | None = None,
) -> Comparison:
    """Compute every metric on every arm, with intervals and differences."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.label, []).append(arm)
    samples = {
        label: {
            m.name: Sample([m.amounts(arm.answers) for arm in group], [arm.seed for arm in group])
            for m in metrics
        }
        for label, group in groups.items()
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
        _difference(metric, left, right, samples[left][metric.name], samples[right][metric.name])
        for left, right in _pairs(arms)
        for metric in used
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
            replace(arm, answers=[*compress(arm.answers, (each == value for each in values))])
            for arm in comparison.arms
        ]
        groups[value] = measure_arms({}, arms, comparison.metrics, [])
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


def _difference(metric: Metric, left: str, right: str, ours: Sample, theirs: Sample) -> Difference:
    bounds, rows = difference_interval(ours, theirs), min(ours.rows, theirs.rows)
    better = None
    if metric.better and bounds.excludes_zero and rows >= ENOUGH:
        better = left if (bounds.value > 0) == (metric.better == "higher") else right
    return Difference(metric.name, left, right, bounds, better, rows)


def _in_words(
    differences: Sequence[Difference], label: str, other: str, comparison: Comparison
) -> Iterator[str]:
    """Yield "metric (value vs. value, CI low to high)" for each; the first CI is spelt out."""
    meaning = "95% CI of the difference"
    for each in differences:
        ours, theirs = (
            comparison.figures[name][each.metric].interval.value for name in (label, other)
        )
        bounds = sorted((abs(each.interval.low), abs(each.interval.high)))
        low, high = (f"{bound:.2g}" for bound in bounds)
        spread = "the same difference on every row"
        if not each.interval.is_point:
            spread, meaning = f"{meaning} {low} to {high}", "CI"
        yield f"{_plain(each.metric)} ({ours:.3g} vs. {theirs:.3g}, {spread})"


def _plain(metric: str) -> str:
    return metric.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"
