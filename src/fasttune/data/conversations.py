"""Conversations in files: `messages` (role, content), ShareGPT's `conversations` (from, value), and
the `history` of LLaMA-Factory's rows; as the turns of a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fasttune.errors import FasttuneError
from fasttune.formats.row import Row

Turns = Literal["all", "first"]

COLUMNS = ("messages", "conversations")
GIVEN = ("instruction", "output")
"""The columns of a row that come from a conversation."""
KEYS = (("role", "content"), ("from", "value"))
"""How a message is written: as OpenAI's or as ShareGPT's, whatever its column is called."""
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
TOOLS = ("tool", "function", "function_call", "observation", "ipython")


@dataclass
class Conversation:
    """What a record says of its turns.

    Attributes:
        form: how it is written, for people.
        column: that it is in, for messages.
        last: columns of the row that it makes: those of the last turn, and the system text.
        earlier: the turns before the last one.
        exchanges: how many there are in the file.
        problems: what is wrong with it; then there are no turns.
    """

    form: str
    column: str
    last: dict[str, str] = field(default_factory=dict)
    earlier: list[dict[str, str]] = field(default_factory=list)
    exchanges: int = 1
    problems: list[str] = field(default_factory=list)


class _Wrong(Exception):
    """What is wrong with a conversation."""


def has_conversations(names: Iterable[str], columns: Mapping[str, str]) -> bool:
    """Whether a source with these columns, mapped so, may hold conversations."""
    left = {*names} - {*columns.values()} | {*columns}
    return any(column in left for column in COLUMNS)


def read_conversation(
    values: dict[str, Any], columns: Mapping[str, str], answered: bool, take: Turns
) -> Conversation | None:
    """The conversation in a record, whose columns are taken out of it; None where it holds none.

    Args:
        values: the record, columns mapped.
        columns: our column -> theirs, as a person mapped them: decides where there are two forms.
        answered: whether it has to end with the assistant's turn.
        take: all exchanges or the first one.
    """
    for column in COLUMNS:
        found = _listed(values.get(column))
        beside = values.get("instruction") is not None and column not in columns
        if found is None or "instruction" in columns or (beside and not isinstance(found, list)):
            continue
        if beside:
            what = f"stands beside 'instruction': say which one counts, as --map {column}={column}"
            return Conversation("", column, problems=[what])
        del values[column]
        return _made(column, found, answered, take)
    if isinstance(values.get("history"), list):
        return _with_history(values.pop("history"), values, take)
    return None


def from_messages(messages: Sequence[Mapping[str, Any]], answered: bool = False) -> Row:
    """Messages as a row.

    Args:
        answered: whether they have to end with the assistant's turn.

    Raises:
        FasttuneError: they are no conversation.
    """
    made = _made("messages", list(messages), answered, "all")
    if made.problems:
        raise FasttuneError(
            f"these messages are no conversation: one {made.problems[0]}",
            "",
            "write them as [{'role': 'user', 'content': ...}, {'role': 'assistant', ...}, ...]",
        )
    return Row.of(made.last, made.earlier)


def _listed(value: Any) -> Any:
    """A cell's JSON list as a list: a CSV file has nothing but text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _made(column: str, found: Any, answered: bool, take: Turns) -> Conversation:
    try:
        form, system, exchanges = _exchanges(found, answered)
    except _Wrong as wrong:
        return Conversation("", column, problems=[str(wrong)])
    made = Conversation(f"{column} ({form})", column, exchanges=len(exchanges))
    kept = exchanges[:1] if take == "first" else exchanges
    made.last, made.earlier = {**system, **kept[-1]}, kept[:-1]
    return made


def _exchanges(found: Any, answered: bool) -> tuple[str, dict[str, str], list[dict[str, str]]]:
    """The keys of the messages, the system text as a column, and the exchanges."""
    if not isinstance(found, list):
        raise _Wrong("is no list of messages")
    if not found:
        raise _Wrong("has no message")
    system: dict[str, str] = {}
    exchanges: list[dict[str, str]] = []
    form = ""
    for number, message in enumerate(found, start=1):
        keys, role, text = _message(number, message)
        form = form or ", ".join(keys)
        if role == "system":
            if number > 1:
                raise _Wrong(f"has a system text in message {number}: it may only be the first")
            system = {"system": text} if text.strip() else {}
            continue
        if not text.strip():
            raise _Wrong(f"has an empty message {number}, from the {role}")
        due = "assistant" if exchanges and "output" not in exchanges[-1] else "user"
        if role != due:
            raise _Wrong(f"has message {number} from the {role}, where the {due}'s is due")
        if role == "user":
            exchanges.append({"instruction": text})
        else:
            exchanges[-1]["output"] = text
    if not exchanges:
        raise _Wrong("has a system text alone")
    if answered and "output" not in exchanges[-1]:
        none = "has no assistant turn" if len(exchanges) == 1 else "ends with the user's turn"
        raise _Wrong(f"{none}: there is nothing to learn from it")
    return form, system, exchanges


def _message(number: int, message: Any) -> tuple[tuple[str, str], str, str]:
    """The keys, the role and the text of a message."""
    keys = next((keys for keys in KEYS if isinstance(message, dict) and keys[0] in message), None)
    if keys is None:
        raise _Wrong(f"has a message {number} without 'role' or 'from'")
    said, text = message[keys[0]], message.get(keys[1])
    role = ROLES.get(said) if isinstance(said, str) else None
    if said in TOOLS or message.get("tool_calls"):
        raise _Wrong(f"has a tool's part in message {number}: tool calls cannot be trained")
    if role is None:
        known = ", ".join(ROLES)
        raise _Wrong(f"has the role {said!r} in message {number}; known: {known}")
    if not isinstance(text, str):
        what = "no" if text is None else f"a {type(text).__name__} for its"
        raise _Wrong(f"has {what} text in message {number}, under '{keys[1]}'")
    if message.get("weight", 1) in (0, False) or message.get("train", True) is False:
        raise _Wrong(f"leaves message {number} out of the loss: every assistant turn is learned")
    return keys, role, text


def _with_history(earlier: Any, values: Mapping[str, Any], take: Turns) -> Conversation:
    """LLaMA-Factory's: [question, answer] pairs before the row's own instruction and output."""
    made = Conversation("instruction, output, history", "history", exchanges=len(earlier) + 1)
    exchanges = []
    for number, pair in enumerate(earlier, start=1):
        texts = isinstance(pair, list | tuple) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) != 2 or not all(text.strip() for text in pair):
            made.problems = [f"has an exchange {number} that is no [question, answer]"]
            return made
        exchanges.append(dict(zip(GIVEN, pair, strict=True)))
    if take == "first" and exchanges:
        made.last = {"input": "", "reasoning": "", **exchanges[0]}
    else:
        made.earlier = exchanges
    return made


def readable(row: Row) -> dict[str, Any]:
    """A row as a person would write it: a conversation as `messages`, columns besides kept."""
    system = {"system": row.system} if row.system else {}
    if len(row.turns) == 1:
        return {**system, **row.turns[0], **row.columns}
    messages = [{"role": "system", "content": row.system}] if row.system else []
    for turn in row.turns:
        asked = "\n\n".join(filter(None, (turn["instruction"], turn.get("input"))))
        messages.append({"role": "user", "content": asked})
        if turn.get("output"):
            messages.append({"role": "assistant", "content": turn["output"]})
    return {"messages": messages, **row.columns}
