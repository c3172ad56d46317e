"""Whether a format follows from a declaration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import require_name
from fasttune.formats.parts import END, Choice, Declaration, Part, split_format
from fasttune.formats.row import TURN_COLUMNS

KNOWN = ("system", "instruction", "input", "language")
"""The columns that any prompt may show; others are named in `Template.columns`."""


class LearnedPart(NamedTuple):
    """A learned part: text before its column, the column ("" for none), and text behind it."""

    section: str
    head: str
    column: str
    tail: str
    optional: bool


def learned_parts(declared: Declaration) -> list[LearnedPart]:
    """The learned parts of a format, in order."""
    learned = []
    for part in declared.parts:
        if part.learned:
            (head, column), *rest = split_format(part.texts[0]) or (("", ""),)
            tail = rest[0][0] if rest else ""
            learned.append(LearnedPart(part.section, head, column, tail, part.optional))
    return learned


def following(learned: Sequence[LearnedPart], at: int) -> Sequence[LearnedPart]:
    """The learned parts that may come next: the optional ones, and the first that is not."""
    after = learned[at + 1 :]
    end = next((n + 1 for n, part in enumerate(after) if not part.optional), len(after))
    return after[:end]


def check_types(declared: Declaration) -> None:
    """Refuse an invalid name, and values of other types than declared.

    Raises:
        FasttuneError: it names the attribute.
    """
    require_name(declared.name, "a template", "name")
    try:
        written = msgspec.json.decode(msgspec.json.encode(declared))
        # The name may be a default of a computed format's class, and defaults are not written.
        msgspec.convert({**written, "name": declared.name}, Declaration)
        attributes = vars(type(declared))  # those that a computed format sets
        kinds = {"targets": dict[str, str], "required": tuple[str, ...], "tags": tuple[str, ...]}
        for name in kinds.keys() & attributes.keys():
            if not isinstance(attributes[name], (property, cached_property)):
                msgspec.convert(attributes[name], kinds[name])
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError) as error:
        raise declaration_error(error, f"template '{declared.name}'") from error


def declaration_error(error: Exception, what: str) -> FasttuneError:
    """An error of msgspec as a user's; `where` is its place, as "parts[2].text"."""
    problem, _, path = str(error).partition(" - at `$")
    where = path.rstrip("`").removeprefix(".")
    hint = "write given: or learn: SECTION, and text:"
    if unknown := re.search("unknown field `(.*?)`", problem):
        kind: type[msgspec.Struct] = Part if where.startswith("parts") else Declaration
        kind = Choice if where.endswith(("text", "system")) else kind
        problem = f"there is no key '{unknown[1]}' here"
        where = f"{where}.{unknown[1]}".removeprefix(".")
        hint = did_you_mean(unknown[1], [*kind.__struct_fields__])
    return FasttuneError(f"{what}: {problem}", where or "the declaration", hint)


def check_declaration(declared: Declaration) -> None:
    """Refuse a declaration from which no format follows.

    Raises:
        FasttuneError: it names the part.
    """
    for place, problem, hint in _problems(declared):  # the first is enough
        name = f"template '{declared.name}'"
        if isinstance(place, int):
            name += f", part {place + 1} '{declared.parts[place].section}'"
            place = f"parts[{place}]"
        raise FasttuneError(f"{name}: {problem}", place, hint)


Problem = tuple[str, str]
"""What is wrong, and what to do."""


def _problems(declared: Declaration) -> Iterator[tuple[int | str, str, str]]:
    """Each problem with its place: the number of a part, or a key."""
    parts, system = declared.parts, declared.system
    known = [*KNOWN, *declared.columns]
    for number, part in enumerate(parts):
        before = [each for each in parts[:number] if each.learned]
        for fault in _problems_of(part, before, known):
            yield number, *fault
    learned = learned_parts(declared)
    targets = [part.column for part in learned if part.column]
    if not targets:
        problem = "it learns nothing, because no part learns a column"
        yield "parts", problem, 'add a learned part, as learn("response", "{output}")'
    if parts[0].learned:
        yield 0, "nothing is given before it", "begin with a given part"
    for number, part in enumerate(parts):
        for fault in _unknown(part.when or part.unless, known + targets * part.learned):
            yield number, *fault
    if isinstance(system, Choice):
        for fault in _problems_of_choice(system, known):
            yield "system", *fault
    if declared.system_wins and not system:
        problem = "system_wins replaces the system text of every row, and there is none"
        yield "system_wins", problem, "give system"
    numbers = {part.section: number for number, part in enumerate(parts) if part.learned}
    for at, each in enumerate(learned):
        for after in following(learned, at):
            what = f"parse could not separate it from '{each.section}'"
            between = each.tail + after.head
            if each.column and not between.strip():
                problem = f"{what}: only {between!r} is between"
                yield numbers[after.section], problem, "put a tag between them"
            elif each.optional and after.head.startswith(each.head):
                problem = f"{what}: both begin alike, and one may be absent"
                yield numbers[after.section], problem, "give them different tags"


def _problems_of(part: Part, learned: Sequence[Part], known: Sequence[str]) -> Iterator[Problem]:
    """The problems of a part by itself, or behind these learned ones."""
    if part.section == END.name:
        yield f"'{END.name}' is what fasttune adds", "give it another name"
    if bool(part.given) == bool(part.learn):
        yield "it needs one section", "write given: SECTION or learn: SECTION"
    if part.when and part.unless:
        yield "when and unless exclude each other", "leave out one of them"
    if part.min_length < 1:
        yield f"min_length is {part.min_length}", "give 1 or more"
    try:
        fields = part.fields
    except ValueError as error:
        yield str(error), "write {column}, and {{ for a brace"
        return
    if not part.learned:
        if learned:
            what = "it is given, but follows a learned part, so the model would have to write it"
            yield what, "make it learn(...), or part of the learned text before it"
        if isinstance(part.text, Choice):
            yield from _problems_of_choice(part.text, known)
        for column in fields:
            yield from _unknown(column, known)
        return
    if isinstance(part.text, Choice):
        yield "a learned text cannot be chosen by a column", "choose a given text"
    if len(fields) > 1:
        yield "it learns two columns", "write a learned part for each"
    for column in fields:
        if column in known:
            yield f"{{{column}}} is given already, so it cannot be learned", "learn another column"
    head = split_format(part.texts[0])[0][0] if part.text else ""
    if part.optional and not head.strip():
        yield "it may be absent, so it must begin with text of its own", "begin it with a tag"
    if any(each.section == part.section for each in learned):
        yield "this section is learned twice", "give it another name"


def _problems_of_choice(choice: Choice, known: Sequence[str]) -> Iterator[Problem]:
    if choice.default not in choice.texts:
        yield f"the default '{choice.default}' has no text", "add it to texts"
    if choice.by in (*TURN_COLUMNS, "system"):
        what = f"'{choice.by}' differs from turn to turn, so it cannot choose a text"
        yield what, "choose by a column of the whole row, such as language"
    yield from _unknown(choice.by, known)


def _unknown(column: str, known: Sequence[str]) -> Iterator[Problem]:
    if column and column not in known:
        hint = f"{did_you_mean(column, known)}; other columns are named in columns"
        yield f"there is no column '{column}' that a prompt may show", hint
