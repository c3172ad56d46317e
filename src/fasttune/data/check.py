"""What is wrong with a record as a row for a template."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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
from fasttune.plugins.guard import PluginError
from fasttune.plugins.template import (
    HISTORY,
    Row,
    Segment,
    Template,
    tags_in,
    texts_of,
    turns,
    with_system,
)

CONTENT = ("instruction", "input", "reasoning", "output")


class _Watched(UserDict[str, str]):
    """A row that notes which columns a template reads: only those have to be in order."""

    def __init__(self, row: Row) -> None:
        self.read: dict[str, None] = {}
        super().__init__(row)

    def __getitem__(self, column: str) -> str:
        self.read[column] = None
        return super().__getitem__(column)

    def __contains__(self, column: object) -> bool:
        self.read[str(column)] = None
        return super().__contains__(column)


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
        own: its text, columns mapped, otherwise as in the source.
        row: the same with the run's system text laid over it.
        segments: `row` as the template renders it, the only time that it does.
        problems: fatal findings; with one, the rest is not to be used.
        failure: how the template failed, where nothing else is wrong with the row.
        conversation: what the record holds of one, if anything.
    """

    own: dict[str, str]
    row: Row
    segments: list[Segment]
    problems: list[Finding]
    failure: PluginError | None = None
    conversation: Conversation | None = None


def check(
    number: int,
    record: object,
    template: Template | None,
    columns: Mapping[str, str],
    required: Sequence[str],
    system: str | None = None,
    take: Turns = "all",
) -> Checked:
    """Map, render and check a record.

    Args:
        take: all exchanges of a conversation, or the first one.

    Raises:
        PluginError: the template gives anything but text for a row that is in order, or never ends.
    """
    if isinstance(record, Finding):
        return Checked({}, {}, [], [record])
    if not isinstance(record, dict):
        what = f"is {_kind(record)}, not an object"
        return Checked({}, {}, [], [Finding(number, "", what, fatal=True)])
    moved = {*columns, *columns.values()}
    values = {name: value for name, value in record.items() if name not in moved}
    values |= {ours: record.get(theirs) for ours, theirs in columns.items()}
    talk = read_conversation(values, columns, "output" in required, take)
    if talk and (wrong := talk.problems or _too_many_turns(talk, template, take)):
        found = [Finding(number, talk.column, problem, fatal=True) for problem in wrong]
        return Checked({}, {}, [], found, conversation=talk)
    values |= talk.columns if talk else {}
    own = {name: value for name, value in values.items() if isinstance(value, str)}
    row = with_system(own, system)
    watched = _Watched(row)
    segments, failure = _rendered(template, watched) if template else ([], None)
    read = watched.read if template else CONTENT
    problems = [
        (column, problem)
        for column in dict.fromkeys((*required, *columns, *read))
        if (problem := _problem(values.get(column), column in required))
    ]
    names = [(f"the name {name!a}", name) for name in values if isinstance(name, str)]
    problems += [
        (column if column in own else "", f"{'' if column in own else f'{column} '}{problem}")
        for column, text in (*texts_of(own), *names)
        if (problem := _unfit(text)) and (column, problem) not in problems
    ]
    if template:
        texts = {column: own[column] for column in read if column in own}
        tagged = tags_in(template, texts)
        problems += [(column, f"contains the template's tag {tag}") for column, tag in tagged]
    failed = failure if failure and not problems else None
    if failed and not failed.raised:
        failed.where += f"\nrow {number}"
        raise failed
    if failed:
        problems.append(("", failed.message))
    if talk:  # as the source calls it
        problems = [(talk.column if c in talk.columns else c, what) for c, what in problems]
    found = [Finding(number, column, problem, fatal=True) for column, problem in problems]
    return Checked(own, row, segments, found, failed, talk)


def _too_many_turns(talk: Conversation, template: Template | None, take: Turns) -> list[str]:
    if take == "first" or not template or template.holds_turns or talk.exchanges == 1:
        return []
    return [
        f"holds {talk.exchanges} exchanges, and the format '{template.name}' holds one: take "
        "another, as chatml, or the first exchange alone with data.turns=first"
    ]


def _rendered(template: Template, row: Row) -> tuple[list[Segment], PluginError | None]:
    """The segments, and how the template fails if it does."""
    try:
        return list(template.segments(row)), None
    except PluginError as error:
        return [], error


def _problem(value: object, required: bool) -> str:
    if value is None:
        return "is missing" if required else ""
    if not isinstance(value, str):
        fix = f': write "{value}"' if isinstance(value, int | float) else ""
        return f"is {_kind(value)}, not text{fix}"
    if required and not value.strip():
        return "is empty"
    return _unfit(value)


def _unfit(text: str) -> str:
    """Why a text can neither be trained on nor be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return "holds a NUL character" if "\0" in text else ""


def require_prompt(row: Row, template: Template, system: str | None = None, eos: str = "") -> None:
    """Refuse to ask what could not be trained on: a text that holds a tag of the template, and so
    could forge a section, or the end of text, or lacks what the prompt is made of.

    Args:
        system: the run's own system text.
        eos: the tokenizer's end of text; "" where it is not known.

    Raises:
        FasttuneError: it names the column.
        PluginError: the template fails on the row.
    """
    if HISTORY in row and not template.holds_turns:
        raise FasttuneError(
            f"the format '{template.name}' holds one turn, and this conversation has "
            f"{len(turns(row))}",
            "",
            "ask the last question alone, or take a format that holds more, such as chatml",
        )
    targets = template.targets.values()
    asked = {column: text for column, text in row.items() if column not in targets}
    required = [column for column in template.required if column not in targets]
    found = check(1, asked, template, {}, required, system)
    if found.failure:
        raise found.failure
    problems = found.problems + ending(1, with_system(asked, system), eos)
    if problems:
        raise FasttuneError(
            "this cannot be asked: training refuses such a row, too",
            "\n".join(str(problem).removeprefix("row 1, ") for problem in problems),
            "take it out of the text, or fill in what is missing",
        )


def ends_early(row: Row, eos: str) -> bool:
    """Whether a row's own text holds the end of text; "" for none is in no text."""
    return bool(eos) and any(eos in text for _, text in texts_of(row))


def ending(number: int, row: Row, eos: str) -> list[Finding]:
    """A finding for each column of a row whose own text holds the end of text."""
    what = f"holds the text {eos}, which would end the row early"
    columns = [column for column, text in texts_of(row) if eos and eos in text]
    return [Finding(number, column, what, fatal=True) for column in dict.fromkeys(columns)]


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    for kind, name in ((int | float, "a number"), (str, "a string"), (list, "a list")):
        if isinstance(value, kind):
            return name
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
