"""The HTML report of a comparison: one file with every figure, every chart and every answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.comparison.charts import ENDINGS, charts, label_colours
from fasttune.comparison.result import Comparison, Difference
from fasttune.formats.row import Row
from fasttune.pages import environment
from fasttune.plugins.metric import Answer
from fasttune.text.languages import detect_language
from fasttune.text.repetition import Repeat, longest_repeat

MARKED = 6
"""Minimum number of words in a repeated stretch that the report marks."""

_QUESTION = ("system", "instruction", "input")


def report_html(comparison: Comparison) -> str:
    """Return a page that needs no other file, no network and no JavaScript."""
    jinja = environment(
        Path(__file__).parent,
        html=True,
        number=_number,
        language=detect_language,
        repeat=_marked_repeat,
        parts=_parts,
    )
    jinja.tests["nan"] = math.isnan
    untuned = [place for place, arm in enumerate(comparison.arms) if not arm.tuned]
    colours = label_colours(comparison)
    return jinja.get_template("report.html.jinja").render(
        comparison=comparison,
        tuned=comparison.tuned_labels or comparison.labels,
        colours=colours,
        charts=charts(comparison, colours),
        best=_best,
        forest=lambda difference: _forest(comparison, difference),
        facts=dict.fromkeys(name for arm in comparison.arms for name in arm.facts),
        exactness=_exactness(comparison),
        places=_places_by_label(comparison),
        choices=_arms_by_choice(comparison),
        columns=lambda place: _columns([arm.answers[place] for arm in comparison.arms]),
        bases=untuned if len(untuned) < len(comparison.arms) else [],
        endings=ENDINGS,
        least_words=MARKED,
    )


def _best(comparison: Comparison, metric: str) -> str | None:
    """Return the tuned label that is better than every other tuned one; None if none is."""
    differences = comparison.differences_in(metric, tuned=True)
    for label in comparison.tuned_labels:
        if {each.better for each in differences if label in (each.left, each.right)} == {label}:
            return label
    return None


def _forest(comparison: Comparison, difference: Difference) -> Sequence[float]:
    """Return where low, value and high of a difference lie on a line from 4 to 116, 0 at 60.

    The differences of a metric between tuned labels share one scale, those with a base another.
    """
    tuned = {difference.left, difference.right} <= {*comparison.tuned_labels}
    intervals = [each.interval for each in comparison.differences_in(difference.metric, tuned)]
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


@dataclass(frozen=True)
class AnswerPart:
    """A part of an answer: a section, the text around sections, or the whole answer."""

    name: str  # of the section; "" if the part is none
    before: str
    repeated: str = ""  # what of the answer's longest repetition lies in this part
    after: str = ""
    is_tag: bool = False  # whether the part is text around sections

    @property
    def text(self) -> str:
        return self.before + self.repeated + self.after


def _parts(answer: Answer, repeat: Repeat | None) -> Iterator[AnswerPart]:
    """Yield an answer's text in order, cut into its sections where it has several."""
    text, sections = answer.text, answer.sections if len(answer.sections) > 1 else {}
    low, high = (repeat.start, repeat.end) if repeat else (len(text), len(text))

    def part(name: str, start: int, end: int, is_tag: bool = False) -> AnswerPart:
        left, right = (min(max(bound, start), end) for bound in (low, high))
        return AnswerPart(name, text[start:left], text[left:right], text[right:end], is_tag)

    spans = _find_sections(text, sections)
    position = 0
    for name, start, end in [*spans, ("", len(text), len(text))]:
        if position < start:
            yield part("", position, start, is_tag=bool(spans))
        if name:
            yield part(name, start, end)
        position = end
    if not spans:  # `parse` changed the sections: show them below the text
        for name, section in sections.items():
            yield AnswerPart(name, section)


def _find_sections(text: str, sections: Mapping[str, str]) -> list[tuple[str, int, int]]:
    """Return (name, start, end) of each section in a text; empty if one cannot be found."""
    spans: list[tuple[str, int, int]] = []
    position = 0
    for name, section in sections.items():
        # Search the last one from the end: a short one may also occur in the tag before it.
        last = len(spans) == len(sections) - 1
        start = text.rfind(section, position) if last else text.find(section, position)
        if start < 0:
            return []
        position = start + len(section)
        spans.append((name, start, position))
    return spans


def _marked_repeat(answer: Answer) -> Repeat | None:
    """Return the longest repetition in an answer if it is long enough to mark."""
    repeat = longest_repeat(answer.text)
    return repeat if repeat and repeat.words >= MARKED else None


def _columns(answers: Sequence[Answer]) -> dict[str, dict[str, str]]:
    """Return heading -> the columns under it that are not blank, of the row of some answers."""
    row = Row.of(answers[0].row)
    texts = {name: str(text) for name, text in row.items() if str(text).strip()}
    reference = dict.fromkeys(column for each in answers for column in each.targets.values())
    named = {"Question": _QUESTION, "Reference": ("reasoning", *reference)}
    headings = {
        f"Turn {number}": {name: text for name, text in turn.items() if text.strip()}
        for number, turn in enumerate(row.turns[:-1], 1)
    }
    for heading, names in named.items():
        headings[heading] = {name: texts.pop(name) for name in names if name in texts}
    headings["Other columns"] = texts
    return {heading: columns for heading, columns in headings.items() if columns}


def _exactness(comparison: Comparison) -> list[list[bool | None]]:
    """Return for each arm and row whether the answer is exact; None if that cannot be told."""
    exact = next((metric for metric in comparison.metrics if metric.name == "exact"), None)
    return [
        [bool(amount) if weight else None for amount, weight in exact.amounts(arm.answers)]
        if exact
        else [None] * len(arm.answers)
        for arm in comparison.arms
    ]


def _places_by_label(comparison: Comparison) -> dict[str, list[int]]:
    """Return label -> the places of its arms in `comparison.arms`."""
    return {
        label: [place for place, arm in enumerate(comparison.arms) if arm.label == label]
        for label in comparison.labels
    }


def _arms_by_choice(comparison: Comparison) -> dict[str, list[int]]:
    """Return "seed 1" and so on -> the places of the arms to show; empty if no label has several.

    A label without the seed shows its first arm.
    """
    groups = _places_by_label(comparison).values()
    if len(groups) == len(comparison.arms):
        return {}
    seeds = dict.fromkeys(arm.seed for arm in comparison.arms if arm.tuned)
    return {
        f"seed {seed}": [
            next((place for place in group if comparison.arms[place].seed == seed), group[0])
            for group in groups
        ]
        for seed in seeds
    } | {"all seeds": list(range(len(comparison.arms)))}
