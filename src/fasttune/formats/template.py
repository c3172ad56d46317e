"""A prompt format as data: parts of text, from which everything else follows."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from fasttune.errors import blame
from fasttune.formats.parts import END, Choice, Declaration, Segment, chosen_text, split_format
from fasttune.formats.row import Row
from fasttune.formats.validity import (
    LearnedPart,
    check_declaration,
    check_types,
    declaration_error,
    following,
    learned_parts,
)
from fasttune.text.languages import language_code

MARKUP = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|(?m:^#+ [^\n{}]+)")
"""What is recognisably a tag: <|tag|>, <tag>, [TAG], or a line with a # heading."""


class Template(Declaration, frozen=True, kw_only=True):
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

    def __post_init__(self) -> None:
        check_types(self)
        if not self.computed:
            check_declaration(self)

    @property
    def computed(self) -> bool:
        """Whether the format is code: a subclass with its own `segments`."""
        return type(self).segments is not Template.segments

    def segments(self, row: Row) -> Iterable[Segment]:
        """The row as ordered segments, with END between two turns.

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
        """The sections of a completion, {section: text}; a section that is absent is ""."""
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
        marks = [self._mark(part, each) for each in following(self._learned, at)]
        end = min((text.find(m) + shift for m, shift in marks if m in text), default=len(text))
        return text[:end].removesuffix(part.tail), text[end:]

    def _mark(self, part: LearnedPart, after: LearnedPart) -> tuple[str, int]:
        """The text between two parts, and where in it `after` begins. A tag needs no text before
        it, which a model may leave out."""
        between, head = part.tail + after.head, after.head
        if any(tag in head for tag in self.tags) and between.find(head) == len(part.tail):
            return head, 0
        return between, len(part.tail)

    @cached_property
    def targets(self) -> dict[str, str]:
        """Section -> the column that holds what it should be."""
        targets = {part.section: part.column for part in self._learned if part.column}
        return targets or {"response": "output"}

    @cached_property
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

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """Markers of the format; a field that contains one could forge a section."""
        literals = [
            literal for part in self.parts for t in part.texts for literal, _ in split_format(t)
        ]
        markup = [tag.strip() for literal in literals for tag in MARKUP.findall(literal)]
        borders = [
            (part.tail + after.head).strip()
            for at, part in enumerate(self._learned)
            for after in following(self._learned, at)
            if part.column
        ]
        borders += [part.head.strip() for part in self._learned if part.optional]
        bare = [b for b in borders if b and not any(tag in b for tag in markup)]
        return tuple(dict.fromkeys([*markup, *bare, *self.more_tags]))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The columns that the format looks at; () for a computed format, which may look at any."""
        columns: list[str] = []
        for part in self.parts:
            chosen = [part.text.by] if isinstance(part.text, Choice) else []
            columns += [*part.fields, part.when, part.unless, *chosen]
        if isinstance(self.system, Choice):
            columns.append(self.system.by)
        return tuple(dict.fromkeys(column for column in columns if column))

    @cached_property
    def chooses_language(self) -> bool:
        """Whether a text is chosen by the language of a row."""
        return any(text.by == "language" for text in self.choices)

    def foreign_language(self, row: Row) -> str:
        """The language of a row for which the format has no text, "unknown" if neither stated nor
        detected; "" if there is a text, or if none is chosen by language."""
        value = row.get("language", "")
        code = language_code(value)
        lacking = any(
            text.by == "language" and text.key(value) == text.default != code
            for text in self.choices
        )
        return (value or "unknown") if lacking else ""

    @property
    def choices(self) -> list[Choice]:
        """The texts that a column chooses: the system text's, then the parts'."""
        texts = [self.system, *(part.text for part in self.parts)]
        return [text for text in texts if isinstance(text, Choice)]

    @cached_property
    def response(self) -> tuple[str, str]:
        """The (section, column) of the answer: the target "response", or the last one."""
        section = "response" if "response" in self.targets else [*self.targets][-1]
        return section, self.targets[section]

    @cached_property
    def _learned(self) -> list[LearnedPart]:
        return learned_parts(self)

    def system_text(self, turn: Mapping[str, str]) -> str:
        """The system text of a turn: the row's own, or the format's."""
        own = "" if self.system_wins else turn.get("system") or ""
        return own or chosen_text(self.system, turn)

    def with_system(self, text: str | None) -> Template:
        """The format with a run's own system text, which replaces that of every row."""
        if not text:
            return self
        return msgspec.structs.replace(self, system=text, system_wins=True)

    def rendered(self, row: Mapping[str, str]) -> list[Segment]:
        """The segments of a row.

        Raises:
            FasttuneError: the code of a computed format fails; it names file and line.
        """
        return [*self._run(Row.of(row))]

    def opening(self, row: Mapping[str, str]) -> list[Segment]:
        """The segments before the first learned one of the last turn. A computed format computes
        no more: it may need columns that a prompt does not have."""
        row = Row.of(row)
        left = len(row.turns) - 1 if self.conversations else 0
        segments = []
        for segment in self._run(row):
            if segment == END:
                left -= 1
            elif segment.train and left <= 0:
                break
            segments.append(segment)
        return segments

    def parsed(self, text: str) -> dict[str, str]:
        """What `parse` makes of a completion.

        Raises:
            FasttuneError: the code of a computed format fails.
        """
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
        shown = Row(row.turns, self.system_text(row), row.columns, row.language)
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

    @property
    def declaration(self) -> dict[str, Any]:
        """The format as JSON values; `from_declaration` gives it back."""
        declared: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return declared

    @property
    def identity(self) -> str:
        """SHA-256 of the declaration without name and description, and of the file that holds the
        code of a computed format. Formats of one identity render alike."""
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


def from_declaration(declared: Any) -> Template:
    """A format from its declaration.

    Raises:
        FasttuneError: it is not valid; `where` names the part, as "parts[2].text".
    """
    try:
        return msgspec.convert(declared, Template)
    except msgspec.ValidationError as error:
        raise declaration_error(error, "not a template") from error


def split_turns(segments: Iterable[Segment]) -> list[list[Segment]]:
    """The segments of each turn, without END."""
    turns: list[list[Segment]] = [[]]
    for segment in segments:
        if segment == END:
            turns.append([])
        else:
            turns[-1].append(segment)
    return turns


def at_the_answer(turn: Iterable[Segment]) -> tuple[list[Segment], list[Segment]]:
    """The segments of a turn before its first learned one, which may be empty, and the others."""
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
    """What differs between two declarations of a format, a line each."""
    before, after = ({**t.declaration, "parts": None} for t in (old, new))
    lines = [
        f"{key}: {before.get(key)!r} became {after.get(key)!r}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and key not in ("name", "description")
    ]
    parts = zip_longest(*(msgspec.to_builtins(t.parts) for t in (old, new)))
    for number, (left, right) in enumerate(parts, 1):
        if left != right:
            lines.append(f"part {number}: {left} became {right}")
    if old.computed or new.computed:
        lines.append("the code that computes its text differs")
    return lines
