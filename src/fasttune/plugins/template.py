"""Templates: ordered segments of text. Nothing here knows a tokenizer.

From `Template.segments` come the training text, the loss mask, the per-section spans and the
inference prompt; there is no second renderer that could drift away from the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

Row = Mapping[str, str]


@dataclass(frozen=True)
class Segment:
    """A stretch of text that belongs to one section and is either learned or given.

    Attributes:
        name: the section, for instance "instruction" or "response".
        text: exactly what the model reads or writes, tags and newlines included.
        train: whether the model learns to write it; False masks it with the label -100.
    """

    name: str
    text: str
    train: bool


def given(name: str, text: str) -> Segment:
    """A segment the model reads: no loss is taken on it."""
    return Segment(name, text, train=False)


def learn(name: str, text: str) -> Segment:
    """A segment the model learns to write."""
    return Segment(name, text, train=True)


class Template:
    """A prompt format. Subclass it, name it, and yield segments.

    Attributes:
        name: what `--template` takes.
        description: one line for `fasttune templates list`.
        tags: markers of the format; a field whose text contains one could forge a section, so such
            a row is reported.
        targets: section -> column; `parse` gives the section back, the column holds what it should
            be.
        required: columns that must be present and not blank in a training row.
        system: the system text, if the format has one; `row["system"]` replaces it.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    tags: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[Mapping[str, str]] = {"response": "output"}
    required: ClassVar[tuple[str, ...]] = ("instruction", "output")
    system: ClassVar[str] = ""

    def segments(self, row: Row) -> Iterable[Segment]:
        """The row as ordered segments, without an end of text: the encoder appends and trains EOS.

        When prompting, the target columns are absent, so read them with `row.get(column, "")`.
        """
        raise NotImplementedError(f"{type(self).__name__}.segments")

    def parse(self, text: str) -> dict[str, str]:
        """The sections of a completion, `{section: text}`; the inverse of the learned segments."""
        return {next(iter(self.targets)): text}

    @property
    def response(self) -> tuple[str, str]:
        """The (section, column) of what a reader gets: the target "response", or the last one."""
        return next(
            (pair for pair in self.targets.items() if pair[0] == "response"),
            list(self.targets.items())[-1],
        )

    def render(self, row: Row) -> str:
        """The whole training text of a row, without EOS."""
        return "".join(segment.text for segment in self.segments(row))

    def prompt(self, row: Row) -> str:
        """The text before the first learned segment: what generation starts from."""
        text = ""
        for segment in self.segments(row):
            if segment.train:
                break
            text += segment.text
        return text


def with_system(row: Row, system: str | None) -> Row:
    """The row with the run's own system text, where there is one."""
    return {**row, "system": system} if system else row


def tags_in(template: Template, row: Row) -> list[tuple[str, str]]:
    """The (column, tag) pairs where a field's own text contains one of the template's tags."""
    return [
        (column, tag)
        for column, text in row.items()
        if isinstance(text, str)
        for tag in template.tags
        if tag in text
    ]
