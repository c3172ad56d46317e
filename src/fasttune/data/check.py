"""What is wrong with a record as a row for a template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fasttune.data.columns import propose_columns
from fasttune.data.conversations import (
    GIVEN,
    Conversation,
    Turns,
    has_conversations,
    read_conversation,
)
from fasttune.data.sources import Finding, Record
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.formats.row import TURN_COLUMNS, Row
from fasttune.formats.template import Template, tags_in
from fasttune.text.languages import detect_language


def column_names(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(name for _, row in records if isinstance(row, dict) for name in row))


def required_of(
    names: Iterable[str], columns: Mapping[str, str], required: Sequence[str]
) -> list[str]:
    """The required columns that a source has to have: a conversation holds two of them."""
    given = GIVEN if has_conversations(names, columns) else ()
    return [column for column in required if column not in given]


def require_columns(
    source: str,
    names: list[str],
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
) -> None:
    """A column that no row has is one mistake, not one per row."""
    if not names:
        return
    for ours, theirs in columns.items():
        if theirs not in names:
            raise FasttuneError(
                f"no column '{theirs}' to take '{ours}' from", source, did_you_mean(theirs, names)
            )
    for column in required_of(names, columns, required):
        if column not in columns and column in columns.values():
            taken = next(ours for ours, theirs in columns.items() if theirs == column)
            raise FasttuneError(
                f"no column '{column}' is left: it is mapped to '{taken}'",
                source,
                f"map another one to '{taken}', or one to '{column}': {', '.join(sorted(names))}",
            )
        if column not in columns and column not in names:
            alike = " ".join(f"--map {o}={t}" for o, t in propose_columns(names, columns).items())
            of = did_you_mean(column, names)
            raise FasttuneError(
                f"no column '{column}'" + (f", which '{template.name}' needs" if template else ""),
                source,
                f"perhaps {alike}; {of}" if alike else f"map it, as in --map {column}=THEIRS: {of}",
            )


class Checked(NamedTuple):
    """What a record is as a row.

    Attributes:
        row: None where there are problems.
        problems: fatal findings.
        conversation: what the record holds of one, if anything.
    """

    row: Row | None
    problems: list[Finding]
    conversation: Conversation | None = None


def check(
    number: int,
    record: object,
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
    take: Turns = "all",
) -> Checked:
    """Map a record's columns and check it.

    Args:
        take: all exchanges of a conversation, or the first one.
    """
    if isinstance(record, Finding):
        return Checked(None, [record])
    if not isinstance(record, dict):
        what = f"is {_kind(record)}, not an object"
        return Checked(None, [Finding(number, "", what, fatal=True)])
    moved = {*columns, *columns.values()}
    values = {name: value for name, value in record.items() if name not in moved}
    values |= {ours: record.get(theirs) for ours, theirs in columns.items()}
    talk = read_conversation(values, columns, "output" in required, take)
    if talk and (wrong := talk.problems or _too_many_turns(talk, template, take)):
        found = [Finding(number, talk.column, problem, fatal=True) for problem in wrong]
        return Checked(None, found, talk)
    values |= talk.last if talk else {}
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    row = Row.of(texts, talk.earlier if talk else ())
    row = _in_its_language(row, template) if template else row
    reads = template.reads if template and template.reads else TURN_COLUMNS
    problems = [
        *_of_values(values, (*required, *columns, *reads), required),
        *_of_texts(row, template),
    ]
    for name in values:
        if isinstance(name, str) and (problem := _unfit(name)):
            problems.append(("", f"the name {name!a} {problem}"))
    if talk:  # as the source calls it
        problems = [(talk.column if c in talk.last else c, what) for c, what in problems]
    problems = list(dict.fromkeys(problems))
    found = [Finding(number, column, problem, fatal=True) for column, problem in problems]
    return Checked(None if found else row, found, talk)


def _too_many_turns(talk: Conversation, template: Template | None, take: Turns) -> list[str]:
    if take == "first" or not template or template.conversations or talk.exchanges == 1:
        return []
    return [
        f"holds {talk.exchanges} exchanges, and the format '{template.name}' holds one: take "
        "another, as chatml, or the first exchange alone with data.turns=first"
    ]


Problem = tuple[str, str]
"""A column, "" for none, and what is wrong with it."""


def _of_values(
    values: Mapping[str, Any], names: Sequence[str], required: Sequence[str]
) -> list[Problem]:
    """What is missing, blank or not text."""
    return [
        (column, problem)
        for column in dict.fromkeys(names)
        if (problem := _problem(values.get(column), column in required))
    ]


def _of_texts(row: Row, template: Template | None) -> list[Problem]:
    """Texts that cannot be stored, or that could forge a section."""
    found = [(column, problem) for column, text in row.texts() if (problem := _unfit(text))]
    tagged = tags_in(template, row) if template else []
    return found + [(column, f"contains the template's tag {tag}") for column, tag in tagged]


def _problem(value: object, required: bool) -> str:
    if value is None:
        return "is missing" if required else ""
    if not isinstance(value, str):
        fix = f': write "{value}"' if isinstance(value, int | float) else ""
        return f"is {_kind(value)}, not text{fix}"
    return "is empty" if required and not value.strip() else ""


def _unfit(text: str) -> str:
    """Why a text can neither be trained on nor be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return "holds a NUL character" if "\0" in text else ""


def require_prompt(row: Mapping[str, str], template: Template, eos: str = "") -> Row:
    """The row as it is asked, its language detected if the format chooses by it. A row that could
    not be trained on is refused: a text that holds a tag of the template, and so could forge a
    section, or the end of text, or lacks what the prompt is made of.

    Args:
        eos: the tokenizer's end of text; "" where it is not known.

    Raises:
        FasttuneError: it names the column.
    """
    row = Row.of(row)
    if len(row.turns) > 1 and not template.conversations:
        raise FasttuneError(
            f"the format '{template.name}' holds one turn, and this conversation has "
            f"{len(row.turns)}",
            "",
            "ask the last question alone, or use a format that holds more, such as chatml",
        )
    targets = template.targets.values()
    asked = row.without([*targets])
    required = [column for column in template.required if column not in targets]
    problems = [*_of_values(asked, required, required), *_of_texts(asked, template)]
    found = [Finding(1, *problem, fatal=True) for problem in problems] + ending(1, asked, eos)
    if found:
        raise FasttuneError(
            "this cannot be asked: training refuses such a row, too",
            "\n".join(str(problem).removeprefix("row 1, ") for problem in found),
            "take it out of the text, or fill in what is missing",
        )
    return _in_its_language(asked, template)


def _in_its_language(row: Row, template: Template) -> Row:
    """The row with its language detected, if the format chooses by it and nothing states it yet."""
    if not template.chooses_language or row.columns.get("language") or row.language:
        return row
    return row.in_language(detect_language(row.get("instruction", "")) or "")


def ends_early(row: Row, eos: str) -> bool:
    """Whether a row's own text holds the end of text; "" for none is in no text."""
    return bool(eos) and any(eos in text for _, text in row.texts())


def ending(number: int, row: Row, eos: str) -> list[Finding]:
    """A finding for each column of a row whose own text holds the end of text."""
    what = f"holds the text {eos}, which would end the row early"
    columns = [column for column, text in row.texts() if eos and eos in text]
    return [Finding(number, column, what, fatal=True) for column in dict.fromkeys(columns)]


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, name in ((int | float, "a number"), (str, "a string"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
