"""A prompt format as data: parts of text, from which everything else follows.

From the parts of a `Template` come the segments with their loss mask, the prompt, the reading of an
answer, the tags that a row must not contain, the required columns, the chat templates of other
programs, and the format's identity. There is no second description that could drift away.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import msgspec

from fasttune.errors import FasttuneError, blame, did_you_mean
from fasttune.files import require_name
from fasttune.formats.row import TURN_COLUMNS, Row


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
        by: the column. A value such as "pt-BR" chooses "pt" where it has no text of its own.
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
        return next((key for key in (value, general) if key in self.texts), self.default)


def choose(by: str, texts: Mapping[str, str], default: str) -> Choice:
    """A text chosen by the value of the column `by`; other values get that of `default`."""
    return Choice(by=by, texts=dict(texts), default=default)


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
    def texts(self) -> list[str]:
        """The format strings that the part may be written from."""
        return [*self.text.texts.values()] if isinstance(self.text, Choice) else [self.text]

    @property
    def fields(self) -> list[str]:
        """The columns that it shows, in order."""
        return list(dict.fromkeys(c for text in self.texts for _, c in pieces(text) if c))

    def applies(self, turn: Mapping[str, str], first: bool) -> bool:
        """Whether the part appears in a turn."""
        has_text = len(turn.get(self.when or self.unless) or "") >= self.min_length
        return (first or not self.once) and (
            has_text if self.when else not (self.unless and has_text)
        )

    def write(self, turn: Mapping[str, str]) -> str:
        """The text of the part in a turn; a column that is absent is empty."""
        text = self.text
        if isinstance(text, Choice):
            text = text.texts[text.key(turn.get(text.by))]
        return "".join(
            literal + (turn.get(column) or "" if column else "") for literal, column in pieces(text)
        )


def given(section: str, text: str | Choice, **conditions: Any) -> Part:
    """A part that the model reads: no loss is taken on it. See `Part` for the conditions."""
    return Part(given=section, text=text, **conditions)


def learn(section: str, text: str, **conditions: Any) -> Part:
    """A part that the model learns to write."""
    return Part(learn=section, text=text, **conditions)


_PIECES: dict[str, tuple[tuple[str, str], ...]] = {}


def pieces(text: str) -> tuple[tuple[str, str], ...]:
    """A format string as (literal text, column behind it, "" at the end).

    Raises:
        ValueError: it is no format string over plain column names.
    """
    if text not in _PIECES:
        found: list[tuple[str, str]] = []
        for literal, column, spec, conversion in Formatter().parse(text):
            if column is not None and (spec or conversion or not column.isidentifier()):
                raise ValueError(f"'{{{column}}}' is not a plain column name")
            if found and not found[-1][1]:  # "{{" ends a piece
                literal = found.pop()[0] + literal
            found.append((literal, column or ""))
        _PIECES[text] = tuple(found)
    return _PIECES[text]


KNOWN = ("system", "instruction", "input", "language")
"""The columns that any prompt may show; others are named in `Template.columns`."""
MARKUP = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|(?m:^#+ [^\n{}]+)")
"""What is recognisably a tag: <|tag|>, <tag>, [TAG], or a line with a # heading."""


class Template(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    dict=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """A prompt format: a value that is declared once, and stored with every run.

    A format whose text has to be computed is a subclass with `segments` (and `parse`) of its own.
    It then sets `targets`, `required` and `tags` as class attributes where the defaults do not fit.

    Attributes:
        name: what `--template` takes.
        parts: the pieces in the order in which they appear; the first learned one is where
            generation begins.
        description: one line for `fasttune templates list`.
        system: the system text of rows that have none.
        system_wins: whether it also replaces the system text of rows that have one.
        columns: columns besides the usual ones that prompts show.
        conversations: whether a row may have several turns, each of which is learned.
        end: the token that ends a turn if that is not the tokenizer's EOS, as "<|im_end|>".
        more_tags: tags besides those that `tags` finds in the parts, such as "USER:".
        chat_template: a Jinja chat template for a format whose text is computed.
    """

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

    def __post_init__(self) -> None:
        require_name(self.name, "a template", "name")
        _check_types(self)
        if not self.computed:
            _check(self)

    @property
    def computed(self) -> bool:
        """Whether the format is code: a subclass with its own `segments`."""
        return type(self).segments is not Template.segments

    # What follows from the parts.

    def segments(self, row: Row) -> Iterable[Segment]:
        """The row as ordered segments, END between two turns, without the end of the last one.

        A subclass overrides it to compute its text. When prompting, the target columns are absent:
        read them with `row.get(column, "")`.
        """
        for number in range(len(row.turns)):
            if number:
                yield END
            turn = row.turn(number)
            turn["system"] = self.system_text(turn)
            for part in self.parts:
                if part.applies(turn, number == 0):
                    yield Segment(part.section, part.write(turn), part.learned)
                elif part.learned:  # generation begins here whether it is written or not
                    yield Segment(part.section, "", True)

    def parse(self, text: str) -> dict[str, str]:
        """The sections of a completion, `{section: text}`; the inverse of the learned parts. A
        section that is not there is ""."""
        if self.computed:
            return {next(iter(self.targets)): text}
        sections = {}
        for at, part in enumerate(self._learned):
            body = ""
            if not part.optional or text.startswith(part.head):
                body, text = self._cut(text.removeprefix(part.head), at)
            if part.column:
                sections[part.section] = body
        return sections

    def _cut(self, text: str, at: int) -> tuple[str, str]:
        """The column's text of a learned part whose head is gone, and what follows the part."""
        part = self._learned[at]
        if not part.column:
            return "", text
        marks = [self._mark(part, each) for each in self._following(at)]
        end = min((text.find(m) + shift for m, shift in marks if m in text), default=len(text))
        return text[:end].removesuffix(part.tail), text[end:]

    def _mark(self, part: _Learned, after: _Learned) -> tuple[str, int]:
        """What tells that `part` ends and `after` begins, and where in it the latter begins. A tag
        does without the text before it, which a model may leave out."""
        between, head = part.tail + after.head, after.head
        if any(tag in head for tag in self.tags) and between.find(head) == len(part.tail):
            return head, 0
        return between, len(part.tail)

    def _following(self, at: int) -> list[_Learned]:
        """The learned parts that may come next: the optional ones, and the first that is not."""
        after = self._learned[at + 1 :]
        end = next((n + 1 for n, part in enumerate(after) if not part.optional), len(after))
        return after[:end]

    @property
    def targets(self) -> dict[str, str]:
        """Section -> the column that holds what it should be."""
        found = {part.section: part.column for part in self._learned if part.column}
        return found or {"response": "output"}

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that must be present and not blank in a training row."""
        if not self.parts:
            return ("instruction", "output")
        columns = dict.fromkeys(
            column
            for part in self.parts
            for column in part.fields
            if column == "instruction" or not (part.when or part.unless)
        )
        return tuple(c for c in columns if c != "language" and (c != "system" or not self.system))

    @property
    def tags(self) -> tuple[str, ...]:
        """Markers of the format; a field whose text contains one could forge a section, so such a
        row is reported."""
        literals = [literal for part in self.parts for t in part.texts for literal, _ in pieces(t)]
        markup = [tag.strip() for literal in literals for tag in MARKUP.findall(literal)]
        borders = [
            (part.tail + after.head).strip()
            for at, part in enumerate(self._learned)
            for after in self._following(at)
            if part.column
        ]
        borders += [part.head.strip() for part in self._learned if part.optional]
        found = [*markup, *(b for b in borders if b and not any(tag in b for tag in markup))]
        return tuple(dict.fromkeys([*found, *self.more_tags]))

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the format looks at; () for one that is computed, which may look at
        any."""
        found: dict[str, None] = {}
        for part in self.parts:
            chosen = [part.text.by] if isinstance(part.text, Choice) else []
            found |= dict.fromkeys([*part.fields, part.when, part.unless, *chosen])
        if isinstance(self.system, Choice):
            found[self.system.by] = None
        return tuple(column for column in found if column)

    @property
    def chooses_language(self) -> bool:
        """Whether a text is chosen by the language of a row."""
        texts = [self.system, *(part.text for part in self.parts)]
        return any(isinstance(text, Choice) and text.by == "language" for text in texts)

    @property
    def response(self) -> tuple[str, str]:
        """The (section, column) of what a reader gets: the target "response", or the last one."""
        pairs = list(self.targets.items())
        return next((pair for pair in pairs if pair[0] == "response"), pairs[-1])

    @cached_property
    def _learned(self) -> list[_Learned]:
        found = []
        for part in self.parts:
            if part.learned:
                (head, column), *rest = pieces(part.texts[0]) or (("", ""),)
                tail = rest[0][0] if rest else ""
                optional = bool(part.when or part.unless or part.once)
                found.append(_Learned(part.section, head, column, tail, optional))
        return found

    def system_text(self, turn: Mapping[str, str]) -> str:
        """The system text of a turn: the row's own, or the format's."""
        own = "" if self.system_wins else turn.get("system") or ""
        if own or not isinstance(self.system, Choice):
            return own or str(self.system)
        return self.system.texts[self.system.key(turn.get(self.system.by))]

    def with_system(self, text: str | None) -> Template:
        """The format with a run's own system text, which replaces that of every row."""
        if not text:
            return self
        return msgspec.structs.replace(self, system=text, system_wins=True)

    # How everything else uses a format.

    def rendered(self, row: Mapping[str, str]) -> list[Segment]:
        """The segments of a row.

        Raises:
            FasttuneError: the code of a format that is computed fails; it names file and line.
        """
        return [*self._run(Row.of(row))]

    def opening(self, row: Mapping[str, str]) -> list[Segment]:
        """The segments before the first learned one of the last turn. A computed format is not
        asked for more: it may need columns that a prompt does not have."""
        row = Row.of(row)
        left = len(row.turns) - 1 if self.conversations else 0
        found = []
        for segment in self._run(row):
            if segment == END:
                left -= 1
            elif segment.train and left <= 0:
                break
            found.append(segment)
        return found

    def parsed(self, text: str) -> dict[str, str]:
        """What `parse` makes of a completion.

        Raises:
            FasttuneError: the code of a format that is computed fails.
        """
        if type(self).parse is Template.parse:
            return self.parse(text)
        try:
            sections = self.parse(text)
            if not all(isinstance(each, str) for pair in sections.items() for each in pair):
                raise TypeError(f"parse() gives {sections!r:.100}: section -> text is wanted")
            return dict(sections)
        except (Exception, SystemExit) as error:
            raise blame(error, f"template '{self.name}'", self.file) from error

    def render(self, row: Mapping[str, str]) -> str:
        """The whole training text of a row, without the ends of its turns."""
        return "".join(segment.text for segment in self.rendered(row))

    def prompt(self, row: Mapping[str, str]) -> str:
        """The text that generation starts from, but for the end of each turn before it."""
        return "".join(segment.text for segment in self.opening(row))

    def _run(self, row: Row) -> Iterator[Segment]:
        if not self.computed:
            yield from self.segments(row)
            return
        system = self.system_text(row)
        shown = Row(row.turns, str(system), row.columns, row.language)
        try:
            for segment in self.segments(shown):
                if not isinstance(segment, Segment) or not isinstance(segment.text, str):
                    raise TypeError(
                        f"segments() gives {segment!r:.100}: Segment(name, text, train) is wanted"
                    )
                yield segment
        except (Exception, SystemExit) as error:
            what = f"row: {row.get('instruction', '')[:80]!r}"
            raise blame(error, f"template '{self.name}'", self.file, what) from error

    # What pins it down.

    @property
    def declaration(self) -> dict[str, Any]:
        """The format as JSON values; `from_declaration` gives it back."""
        declared: dict[str, Any] = json.loads(msgspec.json.encode(self))
        return declared

    @property
    def identity(self) -> str:
        """SHA-256 of the declaration, name and description aside; of a computed format, of the
        declaration and the file that holds its code. Formats of one identity render alike."""
        apart = ("name", "description")
        declared = {key: text for key, text in self.declaration.items() if key not in apart}
        digest = hashlib.sha256(json.dumps(declared, sort_keys=True).encode())
        if self.computed:
            digest.update(self.file.read_bytes() if self.file.is_file() else b"")
        return digest.hexdigest()

    @property
    def file(self) -> Path:
        """The file that holds the code of a computed format."""
        try:
            return Path(inspect.getfile(type(self)))
        except (TypeError, OSError):  # made by a program
            return Path(f"<{type(self).__qualname__}>")


class _Learned(NamedTuple):
    """A learned part: text before its column, the column ("" for none), and text behind it."""

    section: str
    head: str
    column: str
    tail: str
    optional: bool


def from_declaration(declared: Any) -> Template:
    """A format from its declaration.

    Raises:
        FasttuneError: it is not valid; `where` names the part, as "parts[2].text".
    """
    kind: type[msgspec.Struct]
    try:
        return msgspec.convert(declared, Template)
    except msgspec.ValidationError as error:
        what, where = _problem(error)
        hint = "write given: or learn: SECTION, and text:"
        if unknown := re.search("unknown field `(.*?)`", what):
            kind = Part if where.startswith("parts") else Template
            kind = Choice if where.endswith(("text", "system")) else kind
            what = f"there is no key '{unknown[1]}' here"
            where = f"{where}.{unknown[1]}".removeprefix(".")
            hint = did_you_mean(unknown[1], [*kind.__struct_fields__])
        raise FasttuneError(f"not a template: {what}", where or "the declaration", hint) from error


def _check_types(template: Template) -> None:
    """Refuse attributes of other types than are declared, which msgspec leaves unchecked.

    Raises:
        FasttuneError: it names the attribute.
    """
    fields = [(field.name, field.type) for field in msgspec.structs.fields(Template)]
    values = {name: getattr(template, name) for name, _ in fields}
    if template.computed:
        more = {"targets": dict[str, str], "required": tuple[str, ...], "tags": tuple[str, ...]}
        fields += more.items()
        values |= {name: getattr(template, name) for name in more}
    try:
        msgspec.convert(msgspec.to_builtins(values), msgspec.defstruct("Declared", fields))
        msgspec.json.encode(values)
    except (msgspec.ValidationError, TypeError, UnicodeEncodeError) as error:
        what, where = _problem(error)
        where = where or "the declaration"
        raise FasttuneError(f"template '{template.name}': {what}", where, "correct it") from error


def _problem(error: Exception) -> tuple[str, str]:
    """What msgspec has to say, and where, as "parts[2].text"."""
    what, _, path = str(error).partition(" - at `$")
    return what, path.rstrip("`").removeprefix(".")


def _check(template: Template) -> None:
    """Refuse a declaration from which no format follows.

    Raises:
        FasttuneError: it names the part.
    """
    known = [*KNOWN, *template.columns]
    learned: list[Part] = []

    def wrong(at: int, what: str, hint: str) -> FasttuneError:
        part = template.parts[at]
        where = f"parts[{at}]"
        return FasttuneError(
            f"template '{template.name}', part {at + 1} '{part.section}': {what}", where, hint
        )

    for at, part in enumerate(template.parts):
        if part.section == END.name:
            raise wrong(at, f"'{END.name}' is what fasttune adds", "give it another name")
        if bool(part.given) == bool(part.learn):
            raise wrong(
                at, "it needs a section", "write given: SECTION or learn: SECTION, not both"
            )
        if part.when and part.unless:
            raise wrong(at, "when and unless exclude each other", "leave out one of them")
        if part.min_length < 1:
            raise wrong(at, f"min_length is {part.min_length}", "give 1 or more")
        if isinstance(part.text, Choice) and (problem := _of_choice(part.text, known)):
            raise wrong(at, *problem)
        try:
            fields = part.fields
        except ValueError as error:
            hint = "write {column}, and {{ for a brace"
            raise wrong(at, str(error), hint) from error
        if part.learned:
            _check_learned(part, learned, lambda what, hint, at=at: wrong(at, what, hint))
            learned.append(part)
            continue
        if learned:
            what = "it is given, but follows a learned part, so the model would have to write it"
            raise wrong(at, what, "make it learn(...), or part of the learned text before it")
        for column in fields:
            if column not in known:
                raise wrong(at, *_unknown(column, known))
    targets = [column for part in learned for column in part.fields]
    if not targets:
        raise FasttuneError(
            f"template '{template.name}' learns nothing",
            f"{len(template.parts)} parts",
            'add a learned part, as learn("response", "{output}")',
        )
    if not template.parts[0].given:
        raise wrong(0, "nothing is given before it", "begin with a given part")
    for at, part in enumerate(template.parts):
        columns = [*known, *targets] if part.learned else known
        if (condition := part.when or part.unless) and condition not in columns:
            raise wrong(at, *_unknown(condition, columns))
        for column in part.fields if part.learned else ():
            if column in known:
                what = f"{{{column}}} is given already, so it cannot be learned"
                raise wrong(at, what, "take another")
    if isinstance(template.system, Choice) and (problem := _of_choice(template.system, known)):
        raise FasttuneError(f"template '{template.name}': {problem[0]}", "system", problem[1])
    if template.system_wins and not template.system:
        what = "system_wins replaces the system text of every row, and there is none"
        raise FasttuneError(f"template '{template.name}': {what}", "system_wins", "give system")
    for before, after, between in _inseparable(template):
        at = next(n for n, part in enumerate(template.parts) if part.section == after)
        what = f"parse could not tell where '{before}' ends and it begins: {between!r} is between"
        raise wrong(at, what, "put a tag between them")


def _unknown(column: str, known: Sequence[str]) -> tuple[str, str]:
    hint = f"{did_you_mean(column, known)}; other columns are named in columns"
    return f"there is no column '{column}' that a prompt may show", hint


def _of_choice(choice: Choice, known: Sequence[str]) -> tuple[str, str] | None:
    """What is wrong with it, and what to do."""
    if choice.default not in choice.texts:
        return f"the default '{choice.default}' has no text", "add it to texts"
    if choice.by in (*TURN_COLUMNS, "system"):
        what = f"'{choice.by}' is another one in every turn, so it cannot choose a text"
        return what, "choose by a column of the whole row, as language"
    return None if choice.by in known else _unknown(choice.by, known)


def _check_learned(part: Part, before: Sequence[Part], wrong: Any) -> None:
    """Refuse a learned part that is none."""
    if isinstance(part.text, Choice):
        raise wrong("a learned text cannot be chosen by a column", "choose a given text")
    if len(part.fields) > 1:
        raise wrong("it learns two columns", "write a learned part for each")
    head = pieces(part.text)[0][0] if part.text else ""
    if (part.when or part.unless or part.once) and not head.strip():
        raise wrong("it may be absent, and begins with nothing that tells", "begin it with a tag")
    if any(each.section == part.section for each in before):
        raise wrong("this section is learned twice", "give it another name")


def _inseparable(template: Template) -> Iterator[tuple[str, str, str]]:
    """The learned parts that `parse` could not take apart in some row that holds no tag, as
    (section, the one after it, the text between them)."""

    def free(text: str) -> bool:
        return not any(tag in text for tag in template.tags)

    for at, part in enumerate(template._learned):
        following = template._following(at)
        for after in sorted(following, key=lambda each: len(each.head)):
            between = part.tail + after.head
            marks = [template._mark(part, each)[0] for each in following]
            texts = [("x", "")]  # the worst that a row can do: bits of what tells the parts apart
            for mark, end in itertools.product(marks, range(max(map(len, marks)) + 1)):
                rest = mark[end:] if mark[end:].startswith(between) else ""
                texts.append((mark[:end], rest.removeprefix(between)))
            for body, rest in texts if part.column else ():
                wanted = (body, after.head + rest)
                if free(body) and free(rest) and template._cut(body + between + rest, at) != wanted:
                    yield part.section, after.section, between
            rest = part.head.removeprefix(after.head)
            absent = after.head + (rest if rest != part.head or not after.head else "")
            if part.optional and free(rest) and absent.startswith(part.head):
                yield part.section, after.section, after.head


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
    even without text: generation begins there too."""
    segments = list(turn)
    start = next((at for at, segment in enumerate(segments) if segment.train), len(segments))
    return segments[:start], segments[start:]


def tags_in(template: Template, row: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (column, tag) pairs where a field's own text contains one of the template's tags."""
    reads, tags = template.reads, template.tags
    return list(
        dict.fromkeys(
            (column, tag)
            for column, text in Row.of(row).texts()
            if not reads or column in reads
            for tag in tags
            if tag in text
        )
    )


def format_differences(old: Template, new: Template) -> list[str]:
    """What differs between two declarations of a format, a line each, for people."""
    before, after = ({**t.declaration, "parts": None} for t in (old, new))
    lines = [
        f"{key}: {before.get(key)!r} became {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key not in ("name", "description")
    ]
    for at in range(max(len(old.parts), len(new.parts))):
        left, right = (
            msgspec.to_builtins(t.parts[at]) if at < len(t.parts) else None for t in (old, new)
        )
        if left != right:
            lines.append(f"part {at + 1}: {left} became {right}")
    if old.computed or new.computed:
        lines.append("the code that computes its text is another one")
    return lines


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
