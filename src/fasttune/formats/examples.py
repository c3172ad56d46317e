"""Made-up rows, to show and to check a format with."""

from __future__ import annotations

from fasttune.formats.row import Row
from fasttune.formats.template import Template

EXAMPLES: tuple[Row, ...] = tuple(
    Row.of(
        {
            "instruction": instruction,
            "input": context,
            "reasoning": reasoning,
            "output": output,
            "language": language,
        }
    )
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
"""Rows for what a format can tell apart: languages, line breaks, an input or none."""


def examples(template: Template) -> list[Row]:
    """Made-up rows for a format: every column that it needs is there, and where it holds
    conversations some rows are."""
    more = dict.fromkeys(
        (c for c in (*template.columns, *template.targets.values()) if c not in EXAMPLES[0]), "some"
    )
    rows = [row.with_turn(more) if more else row for row in EXAMPLES]
    if not template.conversations:
        return rows
    talks = [rows[at : at + turns] for at, turns in enumerate((2, 3, 2, 4, 2), start=3)]
    return [*rows, *(Row.of(t[-1], [each.turns[0] for each in t[:-1]]) for t in talks)]
