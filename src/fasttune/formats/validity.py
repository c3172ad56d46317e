"""Whether a format follows from a declaration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, NoReturn

import msgspec

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import require_name
from fasttune.formats.parts import END, Choice, Declaration, Part, pieces
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
    found = []
    for part in declared.parts:
        if part.learned:
            (head, column), *rest = pieces(part.texts[0]) or (("", ""),)
            optional = bool(part.when or part.unless or part.once)
            found.append(
                LearnedPart(part.section, head, column, rest[0][0] if rest else "", optional)
            )
    return found


def check_types(declared: Declaration) -> None:
    """Refuse a name that is no name, and values of other types than declared.

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
    """What msgspec says of a declaration; `where` is its place, as "parts[2].text"."""
    said, _, path = str(error).partition(" - at `$")
    where = path.rstrip("`").removeprefix(".")
    hint = "write given: or learn: SECTION, and text:"
    if unknown := re.search("unknown field `(.*?)`", said):
        kind: type[msgspec.Struct] = Part if where.startswith("parts") else Declaration
        kind = Choice if where.endswith(("text", "system")) else kind
        said = f"there is no key '{unknown[1]}' here"
        where = f"{where}.{unknown[1]}".removeprefix(".")
        hint = did_you_mean(unknown[1], [*kind.__struct_fields__])
    return FasttuneError(f"{what}: {said}", where or "the declaration", hint)


def check_declaration(declared: Declaration) -> None:
    """Refuse a declaration from which no format follows.

    Raises:
        FasttuneError: it names the part.
    """

    def refuse(what: str, hint: str, where: str) -> NoReturn:
        raise FasttuneError(f"template '{declared.name}'{what}", where, hint)

    def refuse_part(number: int, problem: Problem) -> NoReturn:
        what = f", part {number + 1} '{declared.parts[number].section}': {problem[0]}"
        refuse(what, problem[1], f"parts[{number}]")

    known = [*KNOWN, *declared.columns]
    for number, part in enumerate(declared.parts):
        before = [each for each in declared.parts[:number] if each.learned]
        if problem := _problem_of(part, before, known):
            refuse_part(number, problem)
    learned = learned_parts(declared)
    targets = [part.column for part in learned if part.column]
    if not targets:
        refuse(" learns nothing", 'add a learned part, as learn("response", "{output}")', "parts")
    if declared.parts[0].learned:
        refuse_part(0, ("nothing is given before it", "begin with a given part"))
    for number, part in enumerate(declared.parts):
        condition, columns = part.when or part.unless, [*known, *targets] if part.learned else known
        if condition and condition not in columns:
            refuse_part(number, _unknown(condition, columns))
    system = declared.system
    if isinstance(system, Choice) and (problem := _problem_of_choice(system, known)):
        refuse(f": {problem[0]}", problem[1], "system")
    if declared.system_wins and not system:
        what = ": system_wins replaces the system text of every row, and there is none"
        refuse(what, "give system", "system_wins")
    numbers = {part.section: number for number, part in enumerate(declared.parts) if part.learned}
    for at, each in enumerate(learned):
        for after in following(learned, at):
            between, problem = each.tail + after.head, None
            if each.column and not between.strip():
                problem = f"only {between!r} is between", "put a tag between them"
            elif each.optional and after.head.startswith(each.head):
                problem = "both begin alike, and one may be absent", "give them different tags"
            if problem:
                what = f"parse could not separate it from '{each.section}': {problem[0]}"
                refuse_part(numbers[after.section], (what, problem[1]))


def following(learned: Sequence[LearnedPart], at: int) -> Sequence[LearnedPart]:
    """The learned parts that may come next: the optional ones, and the first that is not."""
    after = learned[at + 1 :]
    end = next((n + 1 for n, part in enumerate(after) if not part.optional), len(after))
    return after[:end]


Problem = tuple[str, str]
"""What is wrong, and what to do."""


def _problem_of(part: Part, learned: Sequence[Part], known: Sequence[str]) -> Problem | None:
    """What is wrong with a part by itself, or behind these learned ones."""
    if part.section == END.name:
        return f"'{END.name}' is what fasttune adds", "give it another name"
    if bool(part.given) == bool(part.learn):
        return "it needs one section", "write given: SECTION or learn: SECTION"
    if part.when and part.unless:
        return "when and unless exclude each other", "leave out one of them"
    if part.min_length < 1:
        return f"min_length is {part.min_length}", "give 1 or more"
    try:
        fields = part.fields
    except ValueError as error:
        return str(error), "write {column}, and {{ for a brace"
    if part.learned:
        return _problem_of_learned(part, learned, known)
    if learned:
        what = "it is given, but follows a learned part, so the model would have to write it"
        return what, "make it learn(...), or part of the learned text before it"
    if isinstance(part.text, Choice) and (problem := _problem_of_choice(part.text, known)):
        return problem
    return next((_unknown(column, known) for column in fields if column not in known), None)


def _problem_of_learned(part: Part, before: Sequence[Part], known: Sequence[str]) -> Problem | None:
    if isinstance(part.text, Choice):
        return "a learned text cannot be chosen by a column", "choose a given text"
    if len(part.fields) > 1:
        return "it learns two columns", "write a learned part for each"
    if given := [column for column in part.fields if column in known]:
        return f"{{{given[0]}}} is given already, so it cannot be learned", "learn another column"
    head = pieces(part.text)[0][0] if part.text else ""
    if (part.when or part.unless or part.once) and not head.strip():
        return "it may be absent, so it must begin with text of its own", "begin it with a tag"
    if any(each.section == part.section for each in before):
        return "this section is learned twice", "give it another name"
    return None


def _problem_of_choice(choice: Choice, known: Sequence[str]) -> Problem | None:
    if choice.default not in choice.texts:
        return f"the default '{choice.default}' has no text", "add it to texts"
    if choice.by in (*TURN_COLUMNS, "system"):
        what = f"'{choice.by}' differs from turn to turn, so it cannot choose a text"
        return what, "choose by a column of the whole row, such as language"
    return None if choice.by in known else _unknown(choice.by, known)


def _unknown(column: str, known: Sequence[str]) -> Problem:
    hint = f"{did_you_mean(column, known)}; other columns are named in columns"
    return f"there is no column '{column}' that a prompt may show", hint
