"""The charts of a comparison's report, as SVG that stands in the page."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from fasttune.comparison.result import Comparison, Difference
from fasttune.losses import smooth
from fasttune.plugins.metric import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each has a contrast of 3.5 or more to the page's paper, light and dark.
COLOURS = (
    "#2f7ec9", "#c8650a", "#23905a", "#a855c8", "#cf4055", "#7d7f1e", "#0f8c9c", "#8a6a4f"
)  # fmt: skip
STOPS = {"eos": "#1f9254", "length": "#b8860b", "loop": "#d9434f"}
_OTHER_STOP = "#808080"

# Stands for the colour of the page's text, which differs between light and dark.
_INK = "#010203"
_BINS = 28
_INCH = 72
_LINE = 56


@dataclass(frozen=True)
class Chart:
    """A chart: its heading, the SVG, and a line that says how to read it."""

    title: str
    svg: str
    note: str


def colour(comparison: Comparison, label: str) -> str:
    """The colour of a label; the untuned base has that of the format it was asked in."""
    alike: dict[str, list[str]] = {}
    for arm in comparison.arms:
        alike.setdefault(arm.base, []).append(arm.label)
    tuned = list(dict.fromkeys(arm.label for arm in comparison.arms if arm.tuned))
    if label not in tuned:
        base = comparison.arms_of(label)[0].base
        label = next((other for other in alike[base] if other in tuned), label)
    order = [*tuned, *(other for other in comparison.labels if other not in tuned)]
    return COLOURS[order.index(label) % len(COLOURS)]


def label_html(comparison: Comparison, label: str) -> str:
    """A label with a spot of its colour."""
    style = f"--c:{colour(comparison, label)}"
    return f'<span class="label" style="{style}">{html.escape(label)}</span>'


def charts(comparison: Comparison) -> list[Chart]:
    """All charts: a loss per learned section, lengths, stop reasons."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fasttune",
            "text.parse_math": False,
            "font.size": 9.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            **dict.fromkeys(
                ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
                _INK,
            ),
        }
    ):
        losses = [_losses(comparison, name, n) for n, name in enumerate(_sections(comparison))]
        return [*losses, _lengths(comparison), _stops(comparison)]


def _sections(comparison: Comparison) -> list[str]:
    keys = (key for arm in comparison.arms for line in arm.metrics for key in line)
    return [key[len("loss_") :] for key in dict.fromkeys(keys) if key.startswith("loss_")]


def _losses(comparison: Comparison, section: str, number: int) -> Chart:
    from matplotlib.ticker import MaxNLocator

    figure = _figure(3.0)
    axes = figure.subplots()
    for label in comparison.labels:
        group = comparison.arms_of(label)
        style: dict[str, Any] = {"color": colour(comparison, label)}
        for arm in group:
            steps, losses = _series(arm.metrics, f"loss_{section}")
            axes.plot(steps, smooth(losses), linewidth=1.0 if len(group) > 1 else 1.7, **style)
            axes.plot(*_series(arm.metrics, f"eval_loss_{section}"), "o", markersize=4, **style)
    axes.set(xlabel="step", ylabel="nats per token")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    return Chart(
        f"Loss of the section {section}",
        _svg(figure, f"loss{number}", f"Training loss of the section {section} against the step"),
        "Lines: in training, smoothed, one per seed. Points: on held-out rows.",
    )


def _series(metrics: Sequence[Any], key: str) -> tuple[list[float], list[float]]:
    having = [line for line in metrics if math.isfinite(line.get(key, math.nan))]
    return [line["step"] for line in having], [line[key] for line in having]


def _lengths(comparison: Comparison) -> Chart:
    tokens = {label: [a.tokens for a in _answers(comparison, label)] for label in comparison.labels}
    longest = max((count for counts in tokens.values() for count in counts), default=1)
    width = max(1, math.ceil((longest + 1) / _BINS))
    edges = list(range(0, longest + width + 1, width))
    figure, rows = _rows(comparison, 0.72)
    said = []
    for label, axes in zip(comparison.labels, rows, strict=True):
        middle = f"median {median(tokens[label] or [0]):g}"
        said.append(f"{label}: {middle}")
        axes.hist(
            tokens[label],
            bins=edges,
            color=colour(comparison, label),
            alpha=_alpha(comparison, label),
        )
        _name(axes, f"{label}, {middle}")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    rows[-1].set_xlabel("tokens of an answer")
    return Chart(
        "Lengths of the answers",
        _svg(figure, "lengths", "Lengths of the answers in tokens. " + "; ".join(said)),
        "How many answers have which length; each label's highest bar is drawn equally high.",
    )


def _stops(comparison: Comparison) -> Chart:
    counts = {
        label: Counter(a.ending for a in _answers(comparison, label)) for label in comparison.labels
    }
    names = list(dict.fromkeys([*STOPS, *(name for found in counts.values() for name in found)]))
    figure, rows = _rows(comparison, 0.5)
    said = []
    for label, axes in zip(comparison.labels, rows, strict=True):
        total = max(1, counts[label].total())
        start = 0.0
        for name in names:
            share = counts[label][name] / total
            axes.barh(0, share, left=start, color=STOPS.get(name, _OTHER_STOP), height=1)
            start += share
        found = ", ".join(f"{counts[label][name]} {name}" for name in names if counts[label][name])
        said.append(f"{label}: {found}")
        _name(axes, said[-1])
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        axes.set_axis_off()
    return Chart(
        "How the answers ended",
        _svg(figure, "stops", "How the answers ended. " + "; ".join(said)),
        "eos: the model ended the answer itself. length: it ran out of tokens. loop: it "
        "did so while it repeated itself. All seeds together.",
    )


def _answers(comparison: Comparison, label: str) -> list[Answer]:
    return [answer for arm in comparison.arms_of(label) for answer in arm.answers]


def _alpha(comparison: Comparison, label: str) -> float:
    return 1.0 if comparison.arms_of(label)[0].tuned else 0.5


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(4.7, height), layout="constrained", facecolor="none")


def _rows(comparison: Comparison, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of one low chart per label, below each other on a common axis."""
    count = len(comparison.labels)
    figure = _figure(0.55 + height * count)
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _name(axes: Axes, text: str) -> None:
    axes.set_title(textwrap.fill(text, _LINE), loc="left", fontsize=9.5, pad=3)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` whose ids no other chart of the page has."""
    import io

    for axes in figure.axes:
        axes.patch.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{name}-", text)
    text = text.replace(_INK, "currentColor")
    width, height = (f"{inches * _INCH:g}" for inches in figure.get_size_inches())
    head = (
        f'<svg class="chart" role="img" aria-label="{html.escape(description)}" '
        f'viewBox="0 0 {width} {height}">'
    )
    return re.sub(r"^<svg.*?>", lambda _: head, text, count=1, flags=re.DOTALL).strip()


def forest(found: Difference, reach: float, fill: str) -> str:
    """A difference with its interval on a line from -reach to reach, 0 in the middle."""
    low, value, high = (
        60 + 56 * bound / reach
        for bound in (found.interval.low, found.interval.value, found.interval.high)
    )
    return (
        '<svg class="forest" viewBox="0 0 120 14" aria-hidden="true">'
        '<path class="zero" d="M60 0V14"/>'
        f'<path d="M{low:.1f} 7H{high:.1f}" stroke="{fill}" stroke-width="3"/>'
        f'<circle cx="{value:.1f}" cy="7" r="4" fill="{fill}"/></svg>'
    )
