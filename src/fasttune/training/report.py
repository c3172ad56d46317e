"""What a person looks at after a run: the sheet of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttune.files import atomic_path, write_json, write_text
from fasttune.plugins.metric import Answer, Metric, as_dict, score

EXACT = "exact"
"""The metric that is split by columns."""

Shares = dict[str, dict[str, dict[str, float]]]
"""Column -> its value -> number of rows, and the share of exact answers before and after."""


def write_samples(
    folder: Path,
    before: Sequence[Answer],
    after: Sequence[Answer],
    metrics: Sequence[Metric],
    by: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Write samples.json and samples.md, and return the scores before and after.

    Args:
        by: columns of the rows; the share of exact answers is split by each, and drawn in
            answers.png.
    """
    scores = {"before": score(before, metrics), "after": score(after, metrics)}
    pairs = [
        {"row": dict(old.row), "before": as_dict(old), "after": as_dict(new)}
        for old, new in zip(before, after, strict=True)
    ]
    exact = next((metric for metric in metrics if metric.name == EXACT), None)
    shares = {name: _shares(before, after, exact, name) for name in by} if exact else {}
    write_json(folder / "samples.json", {"scores": scores, "by": shares, "samples": pairs})
    if shares:
        draw_shares(shares, folder / "answers.png")
    lines = ["# Answers on held-out rows, before and after training", ""]
    lines += ["| metric | before | after | |", "|---|---:|---:|---|"]
    for metric in metrics:
        if metric.name in scores["before"] or metric.name in scores["after"]:
            shown = [f"{scores[when].get(metric.name, math.nan):.2f}" for when in scores]
            lines += [f"| {metric.name} | {' | '.join(shown)} | {metric.description} |"]
    for name, values in shares.items():
        lines += ["", f"| {EXACT}, by {name} | rows | before | after |", "|---|---:|---:|---:|"]
        lines += [
            f"| {value} | {share['rows']:.0f} | {share['before']:.2f} | {share['after']:.2f} |"
            for value, share in values.items()
        ]
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


def _shares(
    before: Sequence[Answer], after: Sequence[Answer], exact: Metric, column: str
) -> dict[str, dict[str, float]]:
    """By the values of a column, sorted; rows without it are left out."""
    shares = {}
    for value in sorted({answer.row[column] for answer in before if answer.row.get(column)}):
        parts = [
            [each for each in when if each.row.get(column) == value] for when in (before, after)
        ]
        old, new = (score(part, [exact]).get(EXACT, math.nan) for part in parts)
        shares[value] = {"rows": len(parts[0]), "before": old, "after": new}
    return shares


def draw_shares(shares: Shares, target: Path) -> None:
    """Draw the shares of exact answers as bars, a panel for each column, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(map(len, shares.values()))
    size = (0.5 + 4.5 * len(shares), 1.4 + 0.34 * longest)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(shares), squeeze=False)[0]
    for axes, (column, values) in zip(panels, shares.items(), strict=True):
        places = range(len(values))
        names = [f"{value} ({share['rows']:.0f})" for value, share in values.items()]
        for key, colour, height in (("after", "tab:blue", 0.7), ("before", "tab:orange", 0.3)):
            widths = [share[key] for share in values.values()]
            axes.barh(places, widths, height=height, color=colour, label=key)
        axes.set_yticks(places, names)
        axes.set(title=f"by {column}", xlim=(0, 1), ylim=(longest - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside lower center", ncols=2)
    figure.suptitle("held-out answers that are exact, before and after training")
    with atomic_path(target) as temporary:
        figure.savefig(temporary)


def _quote(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.splitlines()]
