"""Conversations in files: `messages` (role, content), ShareGPT's `conversations` (from, value), and
the `history` of LLaMA-Factory's rows; as the turns of a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

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
LOSS = ("weight", "train")
"""Keys of a message that say whether it is learned."""
TOOLS = ("tool", "function", "function_call", "observation", "ipython")


class Exchanges(NamedTuple):
    """The turns in a record: how they are written, for people; the columns of the last one, and the
    system text; the turns before it; how many there are in the file; and the keys of messages that
    hold more than role and text, as "messages.reasoning_content"."""

    form: str
    last: dict[str, str]
    earlier: list[dict[str, str]]
    exchanges: int
    unread: tuple[str, ...] = ()


def filled(value: Any) -> bool:
    """Whether a column or a key holds anything."""
    return (value.strip() if isinstance(value, str) else value) not in (None, "", [], {})


def has_conversations(names: Iterable[str], columns: Mapping[str, str]) -> bool:
    """Whether a source with these columns, mapped so, may hold conversations."""
    left = {*names} - {*columns.values()} | {*columns}
    return any(column in left for column in COLUMNS)


def conversation_column(values: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """The column of a mapped record that holds a conversation; "" for none. Where there are two
    forms, the one that `columns` maps (ours -> theirs) counts."""
    beside = values.get("instruction") is not None
    for column in () if "instruction" in columns else COLUMNS:
        messages = _listed(values.get(column))
        if isinstance(messages, list) or (
            messages is not None and (not beside or column in columns)
        ):
            return column
    return "history" if isinstance(values.get("history"), list) else ""


def read_conversation(
    column: str, values: dict[str, Any], columns: Mapping[str, str], answered: bool, take: Turns
) -> Exchanges:
    """Take the conversation in a column, as `conversation_column` names it, out of a record; if
    `answered`, it has to end with the assistant's turn. The message of the ValueError that tells
    what is wrong with it reads on from the column."""
    if column == "history":
        return _with_history(values.pop(column), take)
    if values.get("instruction") is not None and column not in columns:
        which = f"--map {column}={column}"
        raise ValueError(f"stands beside 'instruction': say which one counts, as {which}")
    return _from_list(column, _listed(values.pop(column)), answered, take)


def from_messages(messages: Sequence[Mapping[str, Any]], answered: bool = False) -> Row:
    """Messages as a row; if `answered`, they have to end with the assistant's turn."""
    try:
        talk = _from_list("messages", list(messages), answered, "all")
    except ValueError as error:
        raise FasttuneError(
            f"these messages are no conversation: one {error}",
            "",
            "write them as [{'role': 'user', 'content': ...}, {'role': 'assistant', ...}, ...]",
        ) from error
    return Row.of(talk.last, talk.earlier)


def holds_messages(value: Any) -> bool:
    """Whether a column holds a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(role in first for role, _ in KEYS)


def _listed(value: Any) -> Any:
    """A cell's JSON list as a list: a CSV file has nothing but text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _from_list(column: str, messages: Any, answered: bool, take: Turns) -> Exchanges:
    if not isinstance(messages, list):
        raise ValueError("is no list of messages")
    if not messages:
        raise ValueError("has no message")
    system: dict[str, str] = {}
    exchanges: list[dict[str, str]] = []
    unread: dict[str, None] = {}
    form = ""
    for number, message in enumerate(messages, start=1):
        keys, role, text = _message(number, message)
        others = (key for key in message if key not in (*keys, *LOSS) and filled(message[key]))
        unread |= dict.fromkeys(f"{column}.{key}" for key in others)
        form = form or f"{column} ({', '.join(keys)})"
        if role == "system":
            if number > 1:
                raise ValueError(f"has a system text in message {number}: it may only be the first")
            system = {"system": text} if text.strip() else {}
            continue
        if not text.strip():
            raise ValueError(f"has an empty message {number}, from the {role}")
        due = "assistant" if exchanges and "output" not in exchanges[-1] else "user"
        if role != due:
            raise ValueError(f"has message {number} from the {role}, where the {due}'s is due")
        if role == "user":
            exchanges.append({"instruction": text})
        else:
            exchanges[-1]["output"] = text
    if not exchanges:
        raise ValueError("has a system text alone")
    if answered and "output" not in exchanges[-1]:
        none = "has no assistant turn" if len(exchanges) == 1 else "ends with the user's turn"
        raise ValueError(f"{none}: there is nothing to learn from it")
    kept = exchanges[:1] if take == "first" else exchanges
    return Exchanges(form, {**system, **kept[-1]}, kept[:-1], len(exchanges), (*unread,))


def _message(number: int, message: Any) -> tuple[tuple[str, str], str, str]:
    """The keys, the role and the text of a message."""
    keys = next((keys for keys in KEYS if isinstance(message, dict) and keys[0] in message), None)
    if keys is None:
        raise ValueError(f"has a message {number} without 'role' or 'from'")
    name, text = message[keys[0]], message.get(keys[1])
    role = ROLES.get(name) if isinstance(name, str) else None
    if name in TOOLS or message.get("tool_calls"):
        raise ValueError(f"has a tool's part in message {number}: tool calls cannot be trained")
    if role is None:
        known = ", ".join(ROLES)
        raise ValueError(f"has the role {name!r} in message {number}; choose from: {known}")
    if not isinstance(text, str):
        what = "no" if text is None else f"a {type(text).__name__} for its"
        raise ValueError(f"has {what} text in message {number}, under '{keys[1]}'")
    if message.get("weight", 1) in (0, False) or message.get("train", True) is False:
        raise ValueError(f"leaves message {number} out of the loss: every answer is learned")
    return keys, role, text


def _with_history(earlier: Any, take: Turns) -> Exchanges:
    """LLaMA-Factory's: [question, answer] pairs before the row's own instruction and output."""
    exchanges = []
    for number, pair in enumerate(earlier, start=1):
        texts = isinstance(pair, list | tuple) and all(isinstance(text, str) for text in pair)
        if not texts or len(pair) != 2 or not all(text.strip() for text in pair):
            raise ValueError(f"has an exchange {number} that is no [question, answer]")
        exchanges.append(dict(zip(GIVEN, pair, strict=True)))
    last = {"input": "", "reasoning": "", **exchanges[0]} if take == "first" and exchanges else {}
    form = "instruction, output, history"
    return Exchanges(form, last, [] if last else exchanges, len(exchanges) + 1)


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
