"""Which of a file's columns are ours under another name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fasttune.data.conversations import COLUMNS, has_conversations

OTHER_NAMES = {
    "messages": ("conversation", "dialogue", "dialog", "chat"),
    "instruction": ("question", "prompt", "query", "problem", "task", "user", "human"),
    "input": ("context", "passage"),
    "reasoning": ("rationale", "thought", "thinking", "chain_of_thought", "cot"),
    "output": ("answer", "response", "completion", "target", "solution", "assistant", "reply"),
}
"""Our column -> what others often call it, the likeliest first."""


def propose_columns(
    names: Sequence[str], columns: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our column -> the one of `names` that is likely to hold it, where none is called as ours. A
    conversation needs no other column.

    Args:
        columns: our column -> the source's, as a person mapped them.
    """
    taken = columns or {}
    if has_conversations(names, taken):
        return {}
    lower = {name.lower(): name for name in reversed(names) if name not in taken.values()}
    found = {
        ours: next(lower[other] for other in (ours, *others) if other in lower)
        for ours, others in OTHER_NAMES.items()
        if ours not in (*names, *taken) and any(other in lower for other in (ours, *others))
    }
    talk = found.pop(COLUMNS[0], None)
    lacking = not {"instruction", "output"} <= {*names, *taken, *found}
    return {COLUMNS[0]: talk} if talk and lacking else found
