"""What pins a template down: where it came from, and a hash of what it renders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fasttune.plugins.guard import PluginError, place_of, watched
from fasttune.plugins.template import Row, Segment, Template, history


@dataclass(frozen=True)
class Identity:
    """What pins a template down: saved with every adapter, compared before generating or resuming.

    Attributes:
        source: SHA-256 of the file that defines the template.
        rendering: `rendering_hash` of the template; this alone decides whether two templates agree.
    """

    name: str
    provider: str
    distribution: str
    version: str
    path: str
    source: str
    rendering: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


PROBE_ROWS: tuple[Row, ...] = tuple(
    {
        "instruction": instruction,
        "input": context,
        "reasoning": reasoning,
        "output": output,
        "language": language,
    }
    for instruction, reasoning, output, language in (
        ("Add 2 and 3.", "2 + 3 = 5.", "5", "en"),
        ("Say it aloud.\nTwice.", "Line one.\nLine two.", '"Quoted", she said.', "en"),
        ("日本の首都はどこですか？", "首都を思い出す。", "東京です。", "ja"),
        ("中国的货币是什么？", "想一想。", "人民币", "zh"),
        ("한국의 수도는 어디입니까?", "생각해 봅니다.", "서울", "ko"),
        ("¿Cuántos días tiene una semana?", "Cuento los días.", "Siete", "es"),
        ("Quel âge a-t-elle ?", "Née en 2000.", "\nVingt-six ans", "fr"),
        ("Wie heißt das Gerät?", "Es heißt Öffner.", "Öffner 🥫", "de"),
    )
    for context in ("", "x", "Some context, in two words.")
)
"""Rows for every combination a template has to tell apart; hashed, so never reordered."""


def probe_rows(template: Template) -> tuple[Row, ...]:
    """The probe rows for a template: conversations besides, where it holds them."""
    if not template.holds_turns:
        return PROBE_ROWS
    talks = [PROBE_ROWS[at : at + turns] for at, turns in enumerate((2, 3, 2, 4, 2), start=3)]
    return (*PROBE_ROWS, *({**talk[-1], **history(talk[:-1])} for talk in talks))


def rendering_hash(template: Template) -> str:
    """SHA-256 over the segments of the probe rows: equal hashes render alike.

    A training row and the same row as a prompt (targets absent) are both hashed, and the system
    text replaced once, because each of these can change on its own.
    """
    rendered = []
    with watched():
        for probe in probe_rows(template):
            bare = {
                key: text for key, text in probe.items() if key not in template.targets.values()
            }
            for row in (probe, bare, {**probe, "system": "Another system text."}):
                rendered.append([[s.name, s.text, s.train] for s in template.segments(row)])
    return hashlib.sha256(json.dumps(rendered, ensure_ascii=True).encode()).hexdigest()


def require_repeatable(template: Template) -> None:
    """Render and parse every probe row, and render it once more. A row that the template cannot
    render is passed over: it may need columns that the probe rows do not have.

    Raises:
        PluginError: a row has another text the second time, or the template gives anything but
            text or never ends.
    """
    with watched():
        for row in probe_rows(template):
            try:
                first, second = list(template.segments(row)), list(template.segments(row))
                template.parse("".join(segment.text for segment in first if segment.train))
            except PluginError as error:
                if error.raised:
                    continue
                raise
            if wrong := unlike(first, second):
                raise PluginError(
                    f"template '{template.name}' gives other text at each call: {wrong}",
                    str(place_of(type(template).segments)),
                    "use nothing but the row: no time, no random choice, no state",
                )


def unlike(first: Sequence[Segment], second: Sequence[Segment]) -> str:
    """How two renderings of one row differ, "" where they do not."""
    if first == second:
        return ""
    texts = ["".join(segment.text for segment in each) for each in (first, second)]
    if texts[0] == texts[1]:
        return "the same text in other segments"
    return difference(*texts)


def difference(seen: str, expected: str) -> str:
    """Where two texts part, with a little of what stands there."""
    at = parting(seen, expected)
    start = max(0, at - 10)
    return f"{seen[start : at + 20]!r} is not {expected[start : at + 20]!r} (character {at})"


def parting(seen: Sequence[object], expected: Sequence[object]) -> int:
    """The first place where two sequences differ."""
    pairs = enumerate(zip(seen, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(seen), len(expected)))
