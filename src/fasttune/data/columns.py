"""Which of a file's columns are ours under another name."""

from __future__ import annotations

from collections.abc import Sequence

OTHER_NAMES = {
    "instruction": ("question", "prompt", "query", "problem", "task"),
    "input": ("context", "passage"),
    "reasoning": ("rationale", "thought", "thinking", "chain_of_thought", "cot"),
    "output": ("answer", "response", "completion", "target", "solution"),
}
"""Our column -> what others often call it, the likeliest first."""


def propose_columns(names: Sequence[str]) -> dict[str, str]:
    """Our column -> the one of `names` that is likely to hold it, where none is called as ours."""
    lower = {name.lower(): name for name in reversed(names)}
    return {
        ours: next(lower[other] for other in (ours, *others) if other in lower)
        for ours, others in OTHER_NAMES.items()
        if ours not in names and any(other in lower for other in (ours, *others))
    }
