"""Generated answers and the figures taken on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fasttune.template import Row


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one row.

    Attributes:
        row: the row it was prompted with, targets included where the row has them.
        text: the completion, EOS removed.
        sections: what the template's `parse` made of the text.
        stop: "eos" where the model ended the answer itself, "length" where it ran out of tokens.
        tokens: number of generated tokens, EOS included.
    """

    row: Row
    text: str
    sections: dict[str, str]
    stop: str
    tokens: int


@dataclass(frozen=True)
class Metric:
    """A figure on a non-empty list of answers.

    Attributes:
        name: the key under which it is saved.
        description: one line for people.
        compute: answers -> number.
    """

    name: str
    description: str
    compute: Callable[[Sequence[Answer]], float]
