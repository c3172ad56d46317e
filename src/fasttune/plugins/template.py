"""Templates: ordered segments of text. Nothing here knows a tokenizer.

From `Template.segments` come the training text, the loss mask, the per-section spans and the
inference prompt; there is no second renderer that could drift away from the first.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any, ClassVar, cast

from fasttune.plugins.guard import Place, PluginError, call, guard_methods, is_text, place_of, short

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


END = Segment("eos", "", train=True)
"""Ends a turn that another one follows: the encoder writes EOS there, and trains it."""

HISTORY = "earlier turns"
"""The column of the exchanges before the one that a row is about, see `turns`. No file has one of
that name."""


def history(exchanges: Sequence[Row]) -> dict[str, str]:
    """Earlier exchanges as a row has them; each has an `instruction`, an `output`, and whatever
    else its turn is written from."""
    text = json.dumps([dict(each) for each in exchanges], ensure_ascii=False)
    return {HISTORY: text} if exchanges else {}


def turns(row: Row) -> list[Row]:
    """The exchanges of a row, each as a row of its own. The last one is the row itself; an earlier
    one takes what it does not say, such as the system text, from the row."""
    earlier = json.loads(row.get(HISTORY) or "[]")
    blank = dict.fromkeys(("input", "reasoning", "output"), "")
    return [*(cast(Row, ChainMap({**blank, **each}, cast(Any, row))) for each in earlier), row]


class Template:
    """A prompt format. Subclass it, name it, and yield segments: from `segments` for a format of
    one turn, from `turn` for one that holds a conversation.

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
        if cls.turn is not Template.turn and (
            cls.segments is Template.segments or _is_in_turns(cls.segments)
        ):
            whole = _guarded("segments", _in_turns, place_of(cls.turn))
            cls.segments = whole  # type: ignore[method-assign]
        guard_methods(cls, Template, _WRONG, _guarded)

    def segments(self, row: Row) -> Iterable[Segment]:
        """The row as ordered segments, without an end of text: the encoder appends and trains EOS.

        When prompting, the target columns are absent, so read them with `row.get(column, "")`.
        """
        raise NotImplementedError(f"{type(self).__name__}.segments")

    def turn(self, row: Row, first: bool) -> Iterable[Segment]:
        """One exchange of a conversation as ordered segments, without an end of turn: the encoder
        appends and trains EOS after every one. Define it instead of `segments`.

        Args:
            row: the exchange, with the columns of a row of its own.
            first: whether the conversation begins with it; a system text goes before it.
        """
        raise NotImplementedError(f"{type(self).__name__}.turn")

    @property
    def holds_turns(self) -> bool:
        """Whether a row may have earlier turns: the format is written by `turn`."""
        return _is_in_turns(type(self).segments)

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
        """The text before the first learned segment of the last turn: what generation starts
        from, but for the EOS after each turn before it."""
        return "".join(segment.text for segment in opening(self, row))


MOST_SEGMENTS = 10_000
"""A template that never ends has more."""


def opening(template: Template, row: Row) -> list[Segment]:
    """The segments before the first learned one of the last turn. What follows is not asked for: it
    may need columns that a prompt does not have.

    Raises:
        PluginError: the template fails.
    """
    segments: Any = template.segments
    if hasattr(segments, "is_guarded"):
        found: list[Segment] = segments(row, prompting=True)
        return found
    return list(_before_answer(template, row, segments(row)))


def split_turns(segments: Iterable[Segment]) -> list[list[Segment]]:
    """The segments of each turn, without what ends it."""
    found: list[list[Segment]] = [[]]
    for segment in segments:
        if segment == END:
            found.append([])
        else:
            found[-1].append(segment)
    return found


def at_the_answer(turn: Iterable[Segment]) -> tuple[list[Segment], list[Segment]]:
    """The segments of a turn before its first learned one, and those from it on. It divides them
    even without text: `Template.prompt` ends there too."""
    segments = list(turn)
    start = next((at for at, segment in enumerate(segments) if segment.train), len(segments))
    return segments[:start], segments[start:]


def _in_turns(template: Template, row: Row) -> Iterator[Segment]:
    """The segments of a row of a format that is written turn by turn."""
    for at, turn in enumerate(turns(row)):
        if at:
            yield END
        yield from template.turn(turn, at == 0)


def _is_in_turns(segments: Any) -> bool:
    return getattr(segments, "__wrapped__", None) is _in_turns


def _before_answer(template: Template, row: Row, segments: Iterable[Any]) -> Iterator[Any]:
    earlier = len(turns(row)) - 1 if template.holds_turns else 0
    for segment in segments:
        if isinstance(segment, Segment) and segment == END:
            earlier -= 1
        elif isinstance(segment, Segment) and segment.train and earlier <= 0:
            return
        yield segment


def _guarded(method: str, defined: Any, at: Place | None = None) -> Callable[..., Any]:
    """A method of a template as everybody calls it.

    Args:
        at: where the plugin's own code is; by default where `defined` is.
    """
    wrong, place = _WRONG[method], at or place_of(defined)

    def given(template: Template, argument: Any, prompting: bool) -> Any:
        found = defined.__get__(template, type(template))(argument)
        if prompting:
            found = _before_answer(template, argument, found)
        return list(islice(found, MOST_SEGMENTS)) if method == "segments" else found

    @wraps(getattr(defined, "__func__", defined))
    def guarded(template: Template, argument: Any, prompting: bool = False) -> Any:
        name = getattr(template, "name", type(template).__name__)
        found = call(template, f"template '{name}'", given, template, argument, prompting, at=place)
        if problem := wrong(found):
            raise PluginError(
                f"template '{name}' breaks its contract: {problem}",
                str(place),
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


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """The (column, text) pairs of a row, each text of its history on its own."""
    for column, text in row.items():
        if column == HISTORY:
            yield from ((column, said) for each in json.loads(text) for said in each.values())
        elif isinstance(text, str):
            yield column, text


def tags_in(template: Template, row: Row) -> list[tuple[str, str]]:
    """The (column, tag) pairs where a field's own text contains one of the template's tags."""
    found = [
        (column, tag) for column, text in texts_of(row) for tag in template.tags if tag in text
    ]
    return list(dict.fromkeys(found))
