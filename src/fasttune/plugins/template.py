"""Templates: ordered segments of text. Nothing here knows a tokenizer.

From `Template.segments` come the training text, the loss mask, the per-section spans and the
inference prompt; there is no second renderer that could drift away from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import islice, takewhile
from typing import Any, ClassVar

from fasttune.plugins.guard import PluginError, call, guard_methods, is_text, place_of, short

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

    What a subclass defines is called through `plugins.guard`: `segments` gives a list whoever calls
    it, and what is wrong, raises or takes too long is a `PluginError` with its file and line.

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

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        guard_methods(cls, Template, _WRONG, _guarded)

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
        return "".join(segment.text for segment in opening(self, row))


MOST_SEGMENTS = 10_000
"""A template that never ends has more."""


def opening(template: Template, row: Row) -> list[Segment]:
    """The segments before the first learned one. What follows is not asked for: it may need columns
    that a prompt does not have.

    Raises:
        PluginError: the template fails.
    """
    segments: Any = template.segments
    if hasattr(segments, "is_guarded"):
        found: list[Segment] = segments(row, prompting=True)
        return found
    return list(takewhile(lambda segment: not segment.train, segments(row)))


def _guarded(method: str, defined: Any) -> Callable[..., Any]:
    """A method of a template as everybody calls it."""
    wrong, at = _WRONG[method], place_of(defined)

    def given(template: Template, argument: Any, prompting: bool) -> Any:
        found = defined.__get__(template, type(template))(argument)
        if prompting:
            found = takewhile(lambda s: not (isinstance(s, Segment) and s.train), found)
        return list(islice(found, MOST_SEGMENTS)) if method == "segments" else found

    @wraps(getattr(defined, "__func__", defined))
    def guarded(template: Template, argument: Any, prompting: bool = False) -> Any:
        name = getattr(template, "name", type(template).__name__)
        found = call(template, f"template '{name}'", given, template, argument, prompting, at=at)
        if problem := wrong(found):
            raise PluginError(
                f"template '{name}' breaks its contract: {problem}",
                str(at),
                f"run: fasttune templates check {name}",
            )
        return found

    guarded.is_guarded = True  # type: ignore[attr-defined]
    return guarded


def _wrong_segments(found: list[Any]) -> str:
    if len(found) == MOST_SEGMENTS:
        return f"segments() gives {MOST_SEGMENTS} segments and more"
    for each in found:
        if not (
            isinstance(each, Segment)
            and isinstance(each.text, str)
            and isinstance(each.name, str)
            and isinstance(each.train, bool)
        ):
            return f"{short(each)} is no segment of text"
        if not (each.text.isascii() or is_text(each.text)) or not is_text(each.name):
            return f"{short(each)} holds half of a surrogate pair"
    return ""


def _wrong_sections(found: Any) -> str:
    if not isinstance(found, dict):
        return f"parse() gives {short(found)}, which is no dict"
    for section, text in found.items():
        if not is_text(section) or not is_text(text):
            return f"parse() gives {short({section: text})}, which is not text"
    return ""


_WRONG: dict[str, Callable[[Any], str]] = {
    "segments": _wrong_segments,
    "parse": _wrong_sections,
    "prompt": lambda found: "" if is_text(found) else f"prompt() gives {short(found)}, no text",
    "render": lambda found: "" if is_text(found) else f"render() gives {short(found)}, no text",
}
"""Method -> what is wrong with what it gave."""


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
