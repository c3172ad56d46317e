"""The HTML report of a comparison: one file with every figure, every chart and every answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fasttune.comparison.answers import (
    MARKED,
    arms_by_choice,
    columns,
    exactness,
    marked_repeat,
    parts,
    places_by_label,
)
from fasttune.comparison.charts import ENDINGS, charts, label_colours
from fasttune.comparison.result import Comparison, Difference
from fasttune.pages import environment
from fasttune.text.languages import detect_language


def to_html(comparison: Comparison) -> str:
    """Return a page that needs no other file, no network and no JavaScript."""
    made = environment(
        Path(__file__).parent,
        html=True,
        number=_number,
        columns=columns,
        language=detect_language,
        repeat=marked_repeat,
        parts=parts,
    )
    made.tests["nan"] = math.isnan
    untuned = [place for place, arm in enumerate(comparison.arms) if not arm.tuned]
    return made.get_template("report.html.jinja").render(
        comparison=comparison,
        tuned=comparison.tuned_labels or comparison.labels,
        colours=label_colours(comparison),
        charts=charts(comparison),
        best=_best,
        forest=lambda difference: _forest(comparison, difference),
        facts=dict.fromkeys(name for arm in comparison.arms for name in arm.facts or {}),
        exactness=exactness(comparison),
        places=places_by_label(comparison),
        choices=arms_by_choice(comparison),
        bases=untuned if len(untuned) < len(comparison.arms) else [],
        endings=ENDINGS,
        least_words=MARKED,
    )


def _best(comparison: Comparison, metric: str) -> str | None:
    """Return the tuned label that is better than every other tuned one; None if none is."""
    for label in comparison.tuned_labels:
        pairs = [pair for pair in comparison.pairs(tuned=True) if label in pair]
        differences = [each for pair in pairs for each in comparison.between(*pair)]
        better = {each.better for each in differences if each.metric == metric}
        if better == {label}:
            return label
    return None


def _forest(comparison: Comparison, difference: Difference) -> Sequence[float]:
    """Return where low, value and high of a difference lie on a line from 4 to 116, 0 at 60.

    The differences of a metric between tuned labels share one scale, those with a base another.
    """
    pair = (difference.left, difference.right)
    alike = comparison.pairs(tuned=pair in comparison.pairs(tuned=True))
    intervals = [
        each.interval
        for other in alike
        for each in comparison.between(*other)
        if each.metric == difference.metric
    ]
    bounds = [abs(bound) for each in intervals for bound in (each.low, each.value, each.high)]
    reach = max(bound for bound in bounds if not math.isnan(bound)) or 1.0
    interval = difference.interval
    return [60 + 56 * bound / reach for bound in (interval.low, interval.value, interval.high)]


def _number(value: object) -> str:
    """Format a number with three significant digits, or as whole thousands; NaN as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "–"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", "−")
