"""The losses of a run as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttune.files import atomic_path


def plot_losses(metrics: Sequence[dict[str, Any]], target: Path, title: str) -> None:
    """Draw the training and evaluation losses (left) and the training loss per section (right) as
    PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    train = [line for line in metrics if "loss" in line]
    evaluated = [line for line in metrics if "eval_loss" in line]
    steps = [line["step"] for line in train]
    losses = [line["loss"] for line in train]
    left.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
    left.plot(steps, smooth(losses), color="tab:blue", label="training (smoothed)")
    left.plot(
        [line["step"] for line in evaluated],
        [line["eval_loss"] for line in evaluated],
        color="tab:orange",
        marker="o",
        label="held out",
    )
    for name in _sections(train, "loss_"):
        having = [line for line in train if f"loss_{name}" in line]
        right.plot(
            [line["step"] for line in having],
            smooth([line[f"loss_{name}"] for line in having]),
            label=name,
        )
    for axes, heading in ((left, "loss"), (right, "training loss per section (smoothed)")):
        axes.set(title=heading, xlabel="step", ylabel="nats per learned token")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(title)
    with atomic_path(target) as temporary:
        figure.savefig(temporary)


def _sections(metrics: Sequence[dict[str, Any]], prefix: str) -> list[str]:
    names = dict.fromkeys(key for line in metrics for key in line if key.startswith(prefix))
    return [name.removeprefix(prefix) for name in names]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start (as Adam's moments are,
    arXiv:1412.6980)."""
    smoothed, average = [], 0.0
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return smoothed
