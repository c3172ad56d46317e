"""What a template is probed with: sentinels, telling texts, and rows to check what was found."""

from __future__ import annotations

import html
import itertools
import json
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fasttune.exports.chat_template.skeleton import Skeleton, State
from fasttune.plugins.identity import PROBE_ROWS
from fasttune.plugins.template import Row

# The telling ones come first: the first text that a template changes is what its refusal is about.
TEXTS = (
    "Hello, World! How ARE you?",
    "\tTabs\tand\t spaces   inside \t",
    " a space before, two after  ",
    "\na line break before and after\n",
    "first line\nsecond line\r\nthird line\n\n\nlast line",
    "42 + 1 = 43, and 1,000.50 is more",
    "日本の首都はどこですか？",
    "中国的货币是什么？",
    "한국의 수도는 어디입니까?",
    "¿Cuántos días tiene una semana?",
    "Quel âge a-t-elle, et où est-ce que ça se trouve ?",
    "Wie heißt das Gerät, und für was ist es?",
    "ما هي عاصمة مصر؟",
    "Сколько дней в неделе?",
    "ไทย हिन्दी עברית 🥫👩‍👩‍👧",
    "e\u0301 ﬁ Ⅳ \u00a0 \u200b \u3000",
    "{{ braces }} {% if x %} {# note #} {0} %s $name",
    'back\\slash \\n "double" \'single\' `tick` """three"""',
    "<b>&amp; &lt;tags&gt;</b> <|endoftext|>",
    "word " * 8000,
    "w" * 5000,
    "ab",
    "x",
    "7",
    "   ",
    "\n",
)

_DISTORTIONS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("strips white space off '{}'", str.strip),
    ("strips white space off '{}'", str.lstrip),
    ("strips white space off '{}'", str.rstrip),
    ("changes the white space in '{}'", lambda text: " ".join(text.split())),
    ("changes the line breaks in '{}'", lambda text: "\n".join(text.splitlines())),
    ("changes the case of '{}'", str.upper),
    ("changes the case of '{}'", str.lower),
    ("changes the case of '{}'", str.capitalize),
    ("changes the case of '{}'", str.title),
    ("changes the case of '{}'", str.casefold),
    ("normalises the Unicode of '{}'", lambda text: unicodedata.normalize("NFC", text)),
    ("normalises the Unicode of '{}'", lambda text: unicodedata.normalize("NFKC", text)),
    ("escapes characters in '{}'", html.escape),
    ("escapes characters in '{}'", lambda text: json.dumps(text)[1:-1]),
    ("escapes characters in '{}'", lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
)

SHORTEST = 9
"""A shorter piece of text may stand in a prompt by chance."""


def distortion(column: str, text: str, prompt: str, otherwise: str | None = None) -> str:
    """What a template did to a column's text, in words, from a prompt that is not as expected.

    `otherwise` is for when the text is in no recognisable form in the prompt.
    """
    if len(text.strip()) >= SHORTEST:
        if text in prompt:
            return f"the text around '{column}' changes with what it says"
        for words, change in _DISTORTIONS:
            if change(text) != text and change(text) in prompt:
                return f"it {words.format(column)}"
        # If a prefix stands in the prompt, so do all shorter ones.
        kept = bisect_left(range(1, len(text)), True, key=lambda n: text[:n] not in prompt)
        if kept >= SHORTEST:
            return f"it shortens '{column}'"
    return f"it does something to '{column}' besides placing it" if otherwise is None else otherwise


class Reads(dict[str, str]):
    """A row that remembers which columns were asked for."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, column: str) -> str:
        self.read.add(column)
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:
        self.read.add(column)
        return super().get(column, default)

    def __contains__(self, column: object) -> bool:
        self.read.add(str(column))
        return super().__contains__(column)


def sentinel(column: str) -> str:
    """A text that no template contains, in mixed case."""
    return f"Zq·{column}·qZ"


def check_rows(
    skeleton: Skeleton, states: Mapping[str, list[State]], base: Row, targets: set[str]
) -> Iterator[dict[str, str]]:
    """Rows that were not used to make a skeleton, to compare it with the template on."""
    for probe in PROBE_ROWS:
        row = {**base, **{k: v for k, v in probe.items() if k not in targets}}
        yield row
        yield {**row, "system": "Another system text."}
        yield {column: text for column, text in row.items() if column not in skeleton.switches}
    chosen = [names for n in range(len(states) + 1) for names in itertools.combinations(states, n)]
    present = [
        {c: value for c in names if (value := states[c][0][1]) is not None} for names in chosen
    ]
    for filled in present[:64]:
        for column in skeleton.placed:
            if column in base or column in filled:
                for text in TEXTS:
                    yield {**base, **filled, column: text}
