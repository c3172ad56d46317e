"""The sheet of answers: samples.json, samples.md and answers.png."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttune.data.conversations import readable
from fasttune.files import atomic_path, write_json, write_text
from fasttune.formats.row import Row
from fasttune.pages import environment
from fasttune.plugins.metric import Answer, Metric, as_dict, score

SPLIT = "exact"
"""The metric that is split by columns."""

Shares = dict[str, dict[str, float]]
"""Value of a column -> number of rows, and the share of exact answers before and after."""


def write_samples(
    folder: Path,
    before: Sequence[Answer],
    after: Sequence[Answer],
    metrics: Sequence[Metric],
    by: Sequence[str] = (),
    kind: str = "held-out",
) -> dict[str, dict[str, float]]:
    """Write samples.json and samples.md, and return the scores before and after.

    Args:
        by: columns of the rows by which exact answers are split, and drawn in answers.png.
        kind: of the rows: "held-out", or "training" if none were held out.
    """
    scores = {"before": score(before, metrics), "after": score(after, metrics)}
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
    template = environment(Path(__file__).parent).get_template("samples.md.jinja")
    text = template.render(
        metrics=[m for m in metrics if m.name in scores["before"] or m.name in scores["after"]],
        **{"kind": kind, "scores": scores, "exact": SPLIT, "shares": shares, "nan": math.nan},
        answers=[*zip(before, after, strict=True)],
    )
    write_text(folder / "samples.md", text)
    return scores


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
    from matplotlib.figure import Figure

    longest = max(map(len, shares.values()))
    size = (0.5 + 4.5 * len(shares), 1.4 + 0.34 * longest)
    figure = Figure(figsize=size, layout="constrained", dpi=120)
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
    figure.suptitle(f"answers on {kind} rows that are exact, before and after training")
    with atomic_path(target) as temporary:
        figure.savefig(temporary)
