"""What the report shows of the answers: the columns of their rows and the parts of their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fasttune.comparison.result import Comparison
from fasttune.plugins.metric import Answer
from fasttune.text.repetition import Repeat, longest_repeat

MARKED = 6
"""Minimum number of words in a repeated stretch that the report marks."""

_QUESTION = ("system", "instruction", "input")
_REFERENCE = ("reasoning", "output")


@dataclass(frozen=True)
class Part:
    """A part of an answer: a section, the text around sections, or the whole answer.

    Attributes:
        name: of the section; "" if the part is none.
        text: all of its text: before + repeated + after.
        repeated: what of the answer's longest repetition lies in this part.
        is_tag: whether the part is text around sections.
    """

    name: str
    text: str
    before: str
    repeated: str
    after: str
    is_tag: bool = False


def parts(answer: Answer, repeat: Repeat | None) -> Iterator[Part]:
    """Yield an answer's text in order, cut into its sections where it has several."""
    text = answer.text
    low, high = (repeat.start, repeat.end) if repeat else (len(text), len(text))

    def part(name: str, start: int, end: int, is_tag: bool = False) -> Part:
        left, right = (min(max(bound, start), end) for bound in (low, high))
        return Part(
            name, text[start:end], text[start:left], text[left:right], text[right:end], is_tag
        )

    sections = answer.sections if len(answer.sections) > 1 else {}
    spans = _find_sections(text, sections)
    if not spans:
        yield part("", 0, len(text))
        for name, section in sections.items():  # `parse` changed them: show them below the text
            yield Part(name, section, section, "", "")
        return
    position = 0
    for name, start, end in [*spans, ("", len(text), len(text))]:
        if position < start:
            yield part("", position, start, is_tag=True)
        if name:
            yield part(name, start, end)
        position = end


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


def marked_repeat(answer: Answer) -> Repeat | None:
    """Return the longest repetition in an answer if it is long enough to mark."""
    repeat = longest_repeat(answer.text)
    return repeat if repeat and repeat.words >= MARKED else None


def columns(row: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return heading -> the columns of a row under it that are not blank."""
    texts = {name: str(text) for name, text in row.items() if str(text).strip()}
    headings = {
        "Question": _QUESTION,
        "Reference": _REFERENCE,
        "Other columns": [name for name in texts if name not in _QUESTION + _REFERENCE],
    }
    return {
        heading: {name: texts[name] for name in names if name in texts}
        for heading, names in headings.items()
        if any(name in texts for name in names)
    }


def exactness(comparison: Comparison) -> list[list[bool | None]]:
    """Return for each arm and row whether the answer is exact; None if that cannot be told."""
    exact = next((metric for metric in comparison.metrics if metric.name == "exact"), None)
    return [
        [bool(amount) if weight else None for amount, weight in exact.amounts(arm.answers)]
        if exact
        else [None] * len(arm.answers)
        for arm in comparison.arms
    ]


def places_by_label(comparison: Comparison) -> dict[str, list[int]]:
    """Return label -> the places of its arms in `comparison.arms`."""
    return {
        label: [place for place, arm in enumerate(comparison.arms) if arm.label == label]
        for label in comparison.labels
    }


def arms_by_choice(comparison: Comparison) -> dict[str, list[int]]:
    """Return "seed 1" and so on -> the places of the arms to show; empty if no label has several.

    A label without the seed shows its first arm.
    """
    groups = places_by_label(comparison).values()
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
