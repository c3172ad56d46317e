"""What a person looks at after a run: the sheet of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fasttune.files import write_json, write_text
from fasttune.plugins.metric import Answer, Metric, as_dict, score


def write_samples(
    folder: Path, before: Sequence[Answer], after: Sequence[Answer], metrics: Sequence[Metric]
) -> dict[str, dict[str, float]]:
    """Write samples.json and samples.md, and return the scores before and after."""
    scores = {"before": score(before, metrics), "after": score(after, metrics)}
    pairs = [
        {"row": dict(old.row), "before": as_dict(old), "after": as_dict(new)}
        for old, new in zip(before, after, strict=True)
    ]
    write_json(folder / "samples.json", {"scores": scores, "samples": pairs})
    lines = ["# Answers on held-out rows, before and after training", ""]
    lines += ["| metric | before | after | |", "|---|---:|---:|---|"]
    for metric in metrics:
        if metric.name in scores["before"] or metric.name in scores["after"]:
            shown = [f"{scores[when].get(metric.name, math.nan):.2f}" for when in scores]
            lines += [f"| {metric.name} | {' | '.join(shown)} | {metric.description} |"]
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        question = old.row["instruction"] + (
            f"\n\n{old.row['input']}" if old.row.get("input") else ""
        )
        lines += ["", f"## {number}", "", *_quote(question), ""]
        lines += [f"**Reference:** {old.row.get('output', '')}"]
        for heading, answer in (("Before", old), ("After", new)):
            lines += ["", f"**{heading}** ({answer.stop}, {answer.tokens} tokens):", ""]
            lines += ["```text", answer.text.replace("```", "'''"), "```"]
    write_text(folder / "samples.md", "\n".join(lines) + "\n")
    return scores


def _quote(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.splitlines()]
