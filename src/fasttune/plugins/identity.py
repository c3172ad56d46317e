"""What pins a template down: where it came from, and a hash of what it renders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from fasttune.plugins.template import Row, Template


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


def rendering_hash(template: Template) -> str:
    """SHA-256 over the segments of the probe rows: equal hashes render alike.

    A training row and the same row as a prompt (targets absent) are both hashed, and the system
    text replaced once, because each of these can change on its own.
    """
    rendered = []
    for probe in PROBE_ROWS:
        prompt = {key: text for key, text in probe.items() if key not in template.targets.values()}
        for row in (probe, prompt, {**probe, "system": "Another system text."}):
            rendered.append([[s.name, s.text, s.train] for s in template.segments(row)])
    return hashlib.sha256(json.dumps(rendered, ensure_ascii=True).encode()).hexdigest()
