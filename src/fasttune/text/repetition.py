"""Finding where a text repeats itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Thai, Lao, Burmese, Khmer, kana, CJK: no spaces between words, so every sign counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
)
# A model can also get caught in white space: what follows on eight of it counts.
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]|(?<=\s{{8}})\s")

_LONGEST_WORD = 40

LOOP_COPIES = 3
"""How often a phrase is repeated at the end of a text that counts as a loop (Holtzman et al.,
arXiv:1904.09751)."""


@dataclass(frozen=True)
class Word:
    """A word, case folded, and its place in the text: characters [start, end)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Repeat:
    """A stretch of text, characters [start, end), in which one phrase follows on itself. The last
    copy may be cut short.

    Attributes:
        words: number of words in the stretch.
        period: number of words in the phrase, at most half as many.
    """

    start: int
    end: int
    words: int
    period: int


def split_words(text: str) -> list[Word]:
    """Split a text into words: runs of letters and digits, and every other sign by itself.

    In scripts without spaces, in a run of more than _LONGEST_WORD letters or digits, and in white
    space after eight of it, every character is a word.
    """
    words = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        step = 1 if end - start > _LONGEST_WORD else end - start
        for place in range(start, end, step):
            words.append(Word(text[place : place + step].casefold(), place, place + step))
    return words


def longest_repeat(text: str) -> Repeat | None:
    """Find the longest stretch in which a phrase of any length follows on itself; of two equally
    long ones the one with the shorter phrase. Takes time quadratic in the number of words."""
    words = split_words(text)
    texts = [word.text for word in words]
    best: Repeat | None = None
    for period in range(1, len(texts) // 2 + 1):
        run = 0
        for place in range(period, len(texts)):
            run = run + 1 if texts[place] == texts[place - period] else 0
            if run >= period and (best is None or run + period > best.words):
                first = words[place + 1 - run - period]
                best = Repeat(first.start, words[place].end, run + period, period)
    return best


def ends_in_loop(text: str) -> bool:
    """Tell whether a text that was cut off ends in a phrase that is repeated LOOP_COPIES times.

    A single word counts as a phrase of two. The last word does not count: it may have been cut.
    """
    texts = [word.text for word in split_words(text)][:-1]
    for period in range(1, len(texts) // LOOP_COPIES + 1):
        length = LOOP_COPIES * max(period, 2)
        tail = texts[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False
