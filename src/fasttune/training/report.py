"""The sheet of answers: samples.json, samples.md and answers.png."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fasttune.data.conversations import readable
from fasttune.files import write_json, write_text
from fasttune.formats.row import Row
from fasttune.losses import drawing
from fasttune.pages import environment
from fasttune.plugins.metric import Answer, Metric, as_dict, score
from fasttune.records import Scores
from fasttune.terminal import visible

SPLIT = "exact"
"""The metric that is split by columns."""

_ENDINGS = {
    "eos": "ended after",
    "length": "cut off at",
    "loop": "cut off while it repeated itself, at",
}
"""How an answer ended, in words that the number of its tokens follows."""

_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$#]|(?<![^\W_])_|_(?![^\W_])")
"""Characters with a meaning in a line of Markdown; an underscore within a word has none."""

Shares = dict[str, dict[str, float]]
"""Value of a column -> number of rows, and the share of exact answers before and after."""


def write_samples(
    folder: Path,
    before: Sequence[Answer],
    after: Sequence[Answer],
    metrics: Sequence[Metric],
    by: Sequence[str] = (),
    kind: str = "held-out",
) -> Scores:
    """Write samples.json and samples.md, and return the scores before and after.

    Args:
        by: columns of the rows by which exact answers are split, and drawn in answers.png.
        kind: of the rows: "held-out", or "training" if none were held out.
    """
    scores: Scores = {"before": score(before, metrics), "after": score(after, metrics)}
    shown = [m for m in metrics if m.name in scores["before"] or m.name in scores["after"]]
    scores["better"] = {metric.name: metric.better for metric in shown}
    pairs = [
        {"row": readable(Row.of(old.row)), "before": as_dict(old), "after": as_dict(new)}
        for old, new in zip(before, after, strict=True)
    ]
    exact = [metric for metric in metrics if metric.name == SPLIT]
    shares = {name: _shares(before, after, exact, name) for name in by if exact}
    sheet = {"rows": kind, "scores": scores, "by": shares, "samples": pairs}
    write_json(folder / "samples.json", sheet)
    if shares:
        draw_shares(shares, folder / "answers.png", kind)
    pages = environment(Path(__file__).parent, escaped=_escaped, fenced=_fenced)
    text = pages.get_template("samples.md.jinja").render(
        **{"kind": kind, "scores": scores, "exact": SPLIT, "shares": shares, "nan": math.nan},
        metrics=shown,
        answers=[*map(_blocks, before, after)],
    )
    write_text(folder / "samples.md", text)
    return scores


def _blocks(before: Answer, after: Answer) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for what the model read, the references and both answers."""
    row = Row.of(before.row)
    if row.system:
        yield "System", row.system
    for number, turn in enumerate(row.turns, 1):
        place = f", turn {number}" if row.turns[1:] else ""
        yield f"Question{place}", turn["instruction"]
        if turn.get("input"):
            yield f"Input{place}", turn["input"]
        if number < len(row.turns):
            yield f"Answer{place}", turn["output"]
    several = len(before.targets) > 1
    for section, text in before.references.items():
        yield f"Reference, {section}" if several else "Reference", text
    for label, answer in (("Before", before), ("After", after)):
        ending = _ENDINGS.get(answer.ending, answer.ending)
        yield f"{label}, {ending} {answer.tokens} token{'s' * (answer.tokens != 1)}", answer.text


def _escaped(text: str) -> str:
    """The text on one line of Markdown, as text."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _fenced(text: str) -> str:
    """The text as a block of code in Markdown; more than three blank lines are counted instead."""
    lines: list[str] = []
    for blank, group in groupby(text.split("\n"), key=lambda line: not line.strip()):
        kept = list(group)
        lines += [f"[{len(kept)} blank lines]"] if blank and len(kept) > 3 else kept
    fence = "`" * (1 + max(map(len, re.findall("`{3,}", text)), default=2))
    return "\n".join([f"{fence}text", *lines, fence])


def _shares(
    before: Sequence[Answer], after: Sequence[Answer], exact: Sequence[Metric], column: str
) -> Shares:
    """Split the exact answers by the values of a column. Rows without it are left out."""
    shares = {}
    for value in sorted({answer.row[column] for answer in before if answer.row.get(column)}):
        old, new = (
            [each for each in answers if each.row.get(column) == value]
            for answers in (before, after)
        )
        rates = (score(part, exact).get(SPLIT, math.nan) for part in (old, new))
        shares[value] = {"rows": len(old), **dict(zip(("before", "after"), rates, strict=True))}
    return shares


def draw_shares(shares: dict[str, Shares], target: Path, kind: str = "held-out") -> None:
    """Draw the shares of exact answers as bars, a panel for each column, as PNG."""
    longest = max(map(len, shares.values()))
    width, height = 0.5 + 4.5 * len(shares), 1.4 + 0.34 * longest
    with drawing(target, width, height) as figure:
        panels: Any = figure.subplots(1, len(shares), squeeze=False)[0]
        for axes, (column, values) in zip(panels, shares.items(), strict=True):
            places = range(len(values))
            names = [f"{visible(value)} ({share['rows']:.0f})" for value, share in values.items()]
            for key, colour, height in (("after", "tab:blue", 0.7), ("before", "tab:orange", 0.3)):
                widths = [share[key] for share in values.values()]
                axes.barh(places, widths, height=height, color=colour, label=key)
            axes.set_yticks(places, names)
            axes.set(title=f"by {column}", xlim=(0, 1), ylim=(longest - 0.5, -0.5))
            axes.grid(axis="x", alpha=0.25)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], frameon=False, loc="outside lower center", ncols=2
        )
        figure.suptitle(f"answers on {kind} rows that are exact, before and after training")
