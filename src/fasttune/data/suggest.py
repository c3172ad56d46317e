"""What the rows of a source suggest: how to map its columns, and which format to take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fasttune.data.conversations import COLUMNS, conversation_column, filled, has_conversations

OTHER_NAMES = {
    "messages": ("conversation", "dialogue", "dialog", "chat"),
    "instruction": ("question", "prompt", "query", "problem", "task", "user", "human"),
    "input": ("context", "passage"),
    "reasoning": (
        "rationale",
        "thought",
        "thinking",
        "reasoning_content",
        "chain_of_thought",
        "cot",
    ),
    "output": ("answer", "response", "completion", "target", "solution", "assistant", "reply"),
}
"""Our column -> what others often call it, the likeliest first."""


def propose_columns(
    names: Sequence[str], columns: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our column -> the one of `names` that is likely to hold it, where none is called as ours or
    mapped to it by `columns`. A conversation needs no other column."""
    taken = columns or {}
    if has_conversations(names, taken):
        return {}
    lower = {name.lower(): name for name in reversed(names) if name not in taken.values()}
    proposed = {
        ours: next(lower[other] for other in (ours, *others) if other in lower)
        for ours, others in OTHER_NAMES.items()
        if ours not in (*names, *taken) and any(other in lower for other in (ours, *others))
    }
    talk = proposed.pop(COLUMNS[0], None)
    lacking = not {"instruction", "output"} <= {*names, *taken, *proposed}
    return {COLUMNS[0]: talk} if talk and lacking else proposed


def mapped(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with its columns renamed; `columns` maps ours to theirs."""
    moved = {*columns, *columns.values()}
    values = {name: value for name, value in record.items() if name not in moved}
    return values | {ours: record.get(theirs) for ours, theirs in columns.items()}


def suggest_template(records: Iterable[Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """The built-in format that loses nothing of the records, and why it is chosen: chatml for
    conversations and for rows with a system text, reasoning for rows that have some, else alpaca.
    """
    reasoned = told = False
    for record in records:
        if not isinstance(record, dict):
            continue
        values = mapped(record, columns)
        if conversation_column(values, columns):
            return "chatml", "the rows are conversations"
        reasoned = reasoned or filled(values.get("reasoning"))
        told = told or filled(values.get("system"))
    if reasoned:
        return "reasoning", "the rows have reasoning"
    if told:
        return "chatml", "the rows have a system text"
    return "alpaca", "the rows have neither reasoning nor a system text"
