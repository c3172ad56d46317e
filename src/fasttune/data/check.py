"""What is wrong with a record as a row for a template, and with the columns of its source."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fasttune.data.conversations import (
    GIVEN,
    Exchanges,
    Turns,
    conversation_column,
    filled,
    has_conversations,
    read_conversation,
)
from fasttune.data.finding import Finding
from fasttune.data.rows import Rows
from fasttune.data.suggest import mapped, propose_columns
from fasttune.data.tables import Undecoded
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.formats.row import TURN_COLUMNS, Row
from fasttune.formats.template import Template, tags_in
from fasttune.text.languages import detect_language


def require_columns(
    source: str,
    names: list[str],
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
    spoken: Sequence[str] = (),
) -> None:
    """A column that no row has is one mistake, not one per row. `spoken` columns hold messages."""
    if not names:
        return
    for ours, theirs in columns.items():
        if theirs not in names:
            raise FasttuneError(
                f"no column '{theirs}' to take '{ours}' from", source, did_you_mean(theirs, names)
            )
    given = GIVEN if has_conversations(names, columns) else ()
    for column in required:
        if column in given or column in columns:
            continue
        if column in columns.values():
            taken = next(ours for ours, theirs in columns.items() if theirs == column)
            raise FasttuneError(
                f"no column '{column}' is left: it is mapped to '{taken}'",
                source,
                f"map another one to '{taken}', or one to '{column}': {', '.join(sorted(names))}",
            )
        if column not in names:
            if len(spoken) > 1:
                what = f"{' and '.join(spoken)} hold lists of messages"
                hint = "write each row's messages as one list, in a column 'messages'"
                raise FasttuneError(f"no column '{column}', and {what}", source, hint)
            proposed = {"messages": spoken[0]} if spoken else propose_columns(names, columns)
            alike = " ".join(f"--map {ours}={theirs}" for ours, theirs in proposed.items())
            of = did_you_mean(column, names)
            if column == "reasoning":
                of += "; or use a template without it: alpaca, or chatml for conversations"
            raise FasttuneError(
                f"no column '{column}'" + (f", which '{template.name}' needs" if template else ""),
                source,
                f"perhaps {alike}; {of}" if alike else f"map it, as in --map {column}=THEIRS; {of}",
            )


class Checked(NamedTuple):
    """A record as a row, or None with what is wrong with it. `unread` names its columns, and the
    keys of its messages, that hold something which the template does not read."""

    row: Row | None
    problems: list[Finding]
    talk: Exchanges | None = None
    unread: Sequence[str] = ()


def check_record(
    number: int,
    record: object,
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
    take: Turns = "all",
) -> Checked:
    """Map a record's columns and check it; `take` is about the exchanges of a conversation."""
    if isinstance(record, Finding):
        return Checked(None, [record])
    if not isinstance(record, dict):
        what = f"is {_kind(record)}, not an object"
        return Checked(None, [Finding(number, "", what, fatal=True)])
    values = mapped(record, columns)
    talk, unread = None, list[str]()
    if talk_column := conversation_column(values, columns):
        try:
            talk = read_conversation(talk_column, values, columns, "output" in required, take)
            _require_room(talk, template, take)
        except ValueError as error:
            return Checked(None, [Finding(number, talk_column, str(error), fatal=True)])
        replaced = {} if talk_column == "history" else talk.last
        unread = [*talk.unread, *(name for name in replaced if filled(values.get(name)))]
        values |= talk.last
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    row = Row.of(texts, talk.earlier if talk else ())
    row = _in_its_language(row, template) if template else row
    reads = template.reads if template and template.reads else TURN_COLUMNS
    shown = {*reads, *required} if template and template.reads else {*texts}
    unread += [name for name, value in values.items() if filled(value) and name not in shown]
    problems = [
        *_of_values(values, (*required, *columns, *reads), required),
        *_of_texts(row, template),
    ]
    for name in values:
        if isinstance(name, str) and (problem := _unfit(name)):
            problems.append(("", f"the name {name!a} {problem}"))
    if talk:  # as the source calls it
        problems = [(talk_column if c in talk.last else c, what) for c, what in problems]
    findings = [Finding(number, *problem, fatal=True) for problem in dict.fromkeys(problems)]
    return Checked(None if findings else row, findings, talk, unread)


def _require_room(talk: Exchanges, template: Template | None, take: Turns) -> None:
    if take == "all" and template and not template.conversations and talk.exchanges > 1:
        raise ValueError(
            f"holds {talk.exchanges} exchanges, and the format '{template.name}' holds one: take "
            "another, as chatml, or the first exchange alone with data.turns=first"
        )


def _of_values(
    values: Mapping[str, Any], names: Sequence[str], required: Sequence[str]
) -> list[tuple[str, str]]:
    """(column, what is missing, blank or not text)."""
    return [
        (column, problem)
        for column in dict.fromkeys(names)
        if (problem := _problem(values.get(column), column in required))
    ]


def _of_texts(row: Row, template: Template | None) -> list[tuple[str, str]]:
    """(column, why its text cannot be stored or could forge a section)."""
    unfit = [(column, problem) for column, text in row.texts() if (problem := _unfit(text))]
    tagged = tags_in(template, row) if template else []
    return unfit + [(column, f"contains the template's tag {tag}") for column, tag in tagged]


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
    """The row as it is asked, its language detected if the format chooses by it. One that could not
    be trained on is refused. `eos` is the tokenizer's end of text; "" where it is not known."""
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
    findings = [Finding(0, *problem, fatal=True) for problem in problems] + ending(0, asked, eos)
    if findings:
        raise FasttuneError(
            "this cannot be asked: training refuses such a row, too",
            "\n".join(map(str, findings)),
            "take it out of the text, or fill in what is missing",
        )
    return _in_its_language(asked, template)


def _in_its_language(row: Row, template: Template) -> Row:
    """The row with its language detected, if the format chooses by it and nothing states it yet."""
    if not template.chooses_language or row.columns.get("language") or row.language:
        return row
    return row.in_language(detect_language(row.get("instruction", "")) or "")


def by_ending(rows: Iterable[Row], eos: str) -> tuple[array[int], array[int]]:
    """The places of the rows whose own text lacks the end of text, and of those that hold it. An
    empty `eos` is in no text."""
    usable, ended = array("q"), array("q")
    for at, row in enumerate(rows):
        holds = bool(eos) and any(eos in text for _, text in row.texts())
        (ended if holds else usable).append(at)
    return usable, ended


def ending_rows(rows: Rows, places: Iterable[int], eos: str) -> list[Finding]:
    """A finding for each such column of the rows at these places."""
    return [
        replace(each, source=rows.origin(at))
        for at in places
        for each in ending(rows.number(at), rows[at], eos)
    ]


def ending(number: int, row: Row, eos: str) -> list[Finding]:
    """A finding for each column of a row whose own text holds the end of text."""
    what = f"holds the text {eos}, which would end the row early"
    columns = [column for column, text in row.texts() if eos and eos in text]
    return [Finding(number, column, what, fatal=True) for column in dict.fromkeys(columns)]


def _kind(value: object) -> str:
    if isinstance(value, Undecoded):
        return f"of the type {value.kind}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((int | float, "a number"), (str, "a string"), (list, "a list"), (dict, "an object"))
    names = (name for kind, name in kinds if isinstance(value, kind))
    return next(names, f"a {type(value).__name__}")
