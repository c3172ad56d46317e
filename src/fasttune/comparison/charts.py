"""The charts of a comparison's report, as SVG drawings inside the page."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fasttune.comparison.result import Comparison
from fasttune.losses import smooth
from fasttune.plugins.metric import Answer
from fasttune.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each has a contrast of at least 3.5 to the page's background, light and dark.
LABEL_COLOURS = (
    "#2f7ec9", "#c8650a", "#23905a", "#a855c8", "#cf4055", "#7d7f1e", "#0f8c9c", "#8a6a4f"
)  # fmt: skip
ENDINGS = {"eos": "#1f9254", "length": "#b8860b", "loop": "#d9434f"}
_OTHER_ENDING = "#808080"

_STYLE = Path(__file__).with_name("charts.mplstyle")
_INK = "#010203"
"""The text colour in _STYLE. In the page it becomes the page's own, light or dark."""
_BINS = 28
_POINTS_PER_INCH = 72
_TITLE_WIDTH = 56


@dataclass(frozen=True)
class Chart:
    """A chart of the report."""

    title: str
    drawing: str  # the content of an `<svg>` element
    size: tuple[float, float]
    description: str  # for screen readers
    note: str  # how to read the chart


def label_colours(comparison: Comparison) -> dict[str, str]:
    """Return label -> colour. An untuned base has the colour of the format it was prompted in."""
    order = list(dict.fromkeys([*comparison.tuned_labels, *comparison.labels]))
    tuned = {arm.base: arm.label for arm in reversed(comparison.arms) if arm.tuned}
    colours = {}
    for arm in comparison.arms:
        label = arm.label if arm.tuned else tuned.get(arm.base, arm.label)
        colours[arm.label] = LABEL_COLOURS[order.index(label) % len(LABEL_COLOURS)]
    return colours


def charts(comparison: Comparison, colours: Mapping[str, str]) -> list[Chart]:
    """Draw all charts: one loss per learned section, answer lengths, stop reasons."""
    import matplotlib

    keys = dict.fromkeys(key for arm in comparison.arms for line in arm.metrics for key in line)
    sections = [key.removeprefix("loss_") for key in keys if key.startswith("loss_")]
    with matplotlib.rc_context(fname=_STYLE):
        losses = [_losses(comparison, colours, *each) for each in enumerate(sections)]
        return [*losses, _lengths(comparison, colours), _endings(comparison)]


def _losses(comparison: Comparison, colours: Mapping[str, str], number: int, section: str) -> Chart:
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(3.0)
    axes = figure.subplots()
    for arm in comparison.arms:
        width = 1.0 if len(comparison.arms_of(arm.label)) > 1 else 1.7
        colour = colours[arm.label]
        steps, losses = _series(arm.metrics, f"loss_{section}")
        axes.plot(steps, smooth(losses), linewidth=width, color=colour)
        axes.plot(*_series(arm.metrics, f"eval_loss_{section}"), "o", markersize=4, color=colour)
    axes.set(xlabel="step", ylabel="nats per token")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid()
    return _chart(
        f"Loss of the section {section}",
        figure,
        f"loss{number}",
        f"Training loss of the section {section} against the step",
        "Lines: training loss, smoothed, one line per seed. Points: loss on held-out rows.",
    )


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    lines = [line for line in metrics if math.isfinite(line.get(key, math.nan))]
    return [line["step"] for line in lines], [line[key] for line in lines]


def _lengths(comparison: Comparison, colours: Mapping[str, str]) -> Chart:
    tokens = {label: [a.tokens for a in _answers(comparison, label)] for label in comparison.labels}
    longest = max((count for counts in tokens.values() for count in counts), default=1)
    width = max(1, math.ceil((longest + 1) / _BINS))
    edges = list(range(0, longest + width + 1, width))
    titles = {label: f"median {median(counts or [0]):g}" for label, counts in tokens.items()}
    figure, rows = _one_row_per_label(titles, 0.72)
    for (label, counts), axes in zip(tokens.items(), rows, strict=True):
        alpha = 1.0 if label in comparison.tuned_labels else 0.5
        axes.hist(counts, bins=edges, color=colours[label], alpha=alpha)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    rows[-1].set_xlabel("tokens per answer")
    return _chart(
        "Lengths of the answers",
        figure,
        "lengths",
        "Lengths of the answers in tokens. " + "; ".join(map(": ".join, titles.items())),
        "Number of answers of each length. Every row is scaled to its own highest bar.",
    )


def _endings(comparison: Comparison) -> Chart:
    counts = {
        label: Counter(a.ending for a in _answers(comparison, label)) for label in comparison.labels
    }
    names = list(dict.fromkeys([*ENDINGS, *(name for each in counts.values() for name in each)]))
    titles = {
        label: ", ".join(f"{count[name]} {name}" for name in names if count[name])
        for label, count in counts.items()
    }
    figure, rows = _one_row_per_label(titles, 0.5)
    for count, axes in zip(counts.values(), rows, strict=True):
        left = 0.0
        for name in names:
            share = count[name] / max(1, count.total())
            axes.barh(0, share, left=left, color=ENDINGS.get(name, _OTHER_ENDING), height=1)
            left += share
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        axes.set_axis_off()
    return _chart(
        "How the answers ended",
        figure,
        "stops",
        "How the answers ended. " + "; ".join(map(": ".join, titles.items())),
        "eos: the model ended the answer. length: the answer was cut off at the token limit. "
        "loop: the same, while the model repeated itself. All seeds together.",
    )


def _answers(comparison: Comparison, label: str) -> list[Answer]:
    return [answer for arm in comparison.arms_of(label) for answer in arm.answers]


def _new_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(4.7, height), layout="constrained", facecolor="none")


def _one_row_per_label(titles: Mapping[str, str], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with one low chart per label, below each other on a shared x axis."""
    figure = _new_figure(0.55 + height * len(titles))
    rows = list(figure.subplots(len(titles), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (label, title) in zip(rows, titles.items(), strict=True):
        text = textwrap.fill(visible(f"{label}: {title}"), _TITLE_WIDTH)
        axes.set_title(text, loc="left", fontsize=9.5, pad=3)
    return figure, rows


def _chart(title: str, figure: Figure, prefix: str, description: str, note: str) -> Chart:
    """Draw a figure; `prefix` makes its ids unique in the page."""
    for axes in figure.axes:
        axes.patch.set_visible(False)
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(target, format="svg", metadata=nothing)
    svg = target.getvalue()
    svg = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{prefix}-", svg)
    svg = svg.replace(_INK, "currentColor").strip()
    width, height = (inches * _POINTS_PER_INCH for inches in figure.get_size_inches())
    return Chart(title, svg, (width, height), description, note)
