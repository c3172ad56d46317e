"""What a prompt format is made of: parts of text with places for columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from string import Formatter
from typing import Any, NamedTuple

import msgspec

from fasttune.text.languages import language_code


class Segment(NamedTuple):
    """A stretch of text that belongs to one section and is either learned or given.

    Attributes:
        name: the section, for example "instruction" or "response".
        text: exactly what the model reads or writes, tags and newlines included.
        train: whether the model learns to write it; False masks it with the label -100.
    """

    name: str
    text: str
    train: bool


END = Segment("eos", "", train=True)
"""Ends a turn that another one follows: the encoder writes the end token there, and trains it."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A text chosen by a column's value; `choose` makes one.

    Attributes:
        by: the column. A value such as "pt-BR" chooses "pt" where it has no text of its own; so do
            "por" and "Portuguese" if the column is "language".
        texts: value -> text.
        default: the value whose text is used for all others.
    """

    by: str
    texts: dict[str, str]
    default: str

    def key(self, value: str | None) -> str:
        """The value among `texts` that a column's value stands for."""
        value = value or ""
        general = re.split("[-_]", value)[0].lower()
        general = language_code(value) if self.by == "language" else general
        return next((key for key in (value, general) if key in self.texts), self.default)


def choose(by: str, texts: Mapping[str, str], default: str) -> Choice:
    """A text chosen by the value of the column `by`; other values get that of `default`."""
    return Choice(by=by, texts=dict(texts), default=default)


def chosen_text(text: str | Choice, turn: Mapping[str, str]) -> str:
    """The text for a turn; {} for one whose columns are unknown."""
    return text.texts[text.key(turn.get(text.by))] if isinstance(text, Choice) else text


class Part(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A piece of a format; `given` and `learn` make one.

    Attributes:
        given, learn: the section, under the one or the other name.
        text: a format string over plain column names, as "Q: {instruction}\\n"; "{{" is a brace.
        when, unless: a column that has to have text, or must not have any, for the part to appear.
        min_length: characters from which on that column counts as having text.
        once: whether the part appears in the first turn of a conversation alone.
    """

    given: str = ""
    learn: str = ""
    text: str | Choice
    when: str = ""
    unless: str = ""
    min_length: int = 1
    once: bool = False

    @property
    def section(self) -> str:
        return self.given or self.learn

    @property
    def learned(self) -> bool:
        return bool(self.learn)

    @property
    def optional(self) -> bool:
        return bool(self.when or self.unless or self.once)

    @property
    def texts(self) -> list[str]:
        """The format strings that the part may be written from."""
        return [*self.text.texts.values()] if isinstance(self.text, Choice) else [self.text]

    @property
    def fields(self) -> list[str]:
        """The columns that it shows, in order."""
        return list(dict.fromkeys(c for text in self.texts for _, c in split_format(text) if c))

    def applies(self, turn: Mapping[str, str], first: bool) -> bool:
        """Whether the part appears in a turn."""
        has_text = len(turn.get(self.when or self.unless) or "") >= self.min_length
        wanted = has_text if self.when else not (self.unless and has_text)
        return wanted and (first or not self.once)

    def write(self, turn: Mapping[str, str]) -> str:
        """The text of the part in a turn; a column that is absent is empty."""
        text = chosen_text(self.text, turn)
        return "".join(
            literal + (turn.get(c) or "" if c else "") for literal, c in split_format(text)
        )


def given(section: str, text: str | Choice, **conditions: Any) -> Part:
    """A part that the model reads: no loss is taken on it. See `Part` for the conditions."""
    return Part(given=section, text=text, **conditions)


def learn(section: str, text: str, **conditions: Any) -> Part:
    """A part that the model learns to write."""
    return Part(learn=section, text=text, **conditions)


@cache
def split_format(text: str) -> tuple[tuple[str, str], ...]:
    """A format string as (literal text, column behind it, "" at the end).

    Raises:
        ValueError: it is no format string over plain column names.
    """
    pieces: list[tuple[str, str]] = []
    for literal, column, spec, conversion in Formatter().parse(text):
        if column is not None and (spec or conversion or not column.isidentifier()):
            raise ValueError(f"'{{{column}}}' is not a plain column name")
        if pieces and not pieces[-1][1]:  # "{{" ends a piece
            literal = pieces.pop()[0] + literal
        pieces.append((literal, column or ""))
    return tuple(pieces)


class Declaration(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    omit_defaults=True,
    dict=True,
):
    """The fields of a `Template`, which explains them."""

    name: str
    parts: Sequence[Part] = ()
    description: str = ""
    system: str | Choice = ""
    system_wins: bool = False
    columns: Sequence[str] = ()
    conversations: bool = False
    end: str = ""
    more_tags: Sequence[str] = ()
    chat_template: str = ""
