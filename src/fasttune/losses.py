"""The losses of a run as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def drawing(target: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of a size in inches, saved as a PNG file after the block. A `$` in its texts begins
    no formula."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
        yield figure
        with atomic_path(target) as temporary:
            figure.savefig(temporary)


def plot_losses(metrics: Sequence[dict[str, Any]], target: Path, title: str) -> None:
    """Write a PNG: training and held-out loss (left), training loss by section (right)."""
    from matplotlib.ticker import MaxNLocator

    def curve(key: str) -> tuple[list[int], list[float]]:
        lines = [line for line in metrics if key in line]
        return [line["step"] for line in lines], [line[key] for line in lines]

    with drawing(target, 11, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        steps, losses = curve("loss")
        left.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
        left.plot(steps, smooth(losses), color="tab:blue", label="training (smoothed)")
        left.plot(*curve("eval_loss"), color="tab:orange", marker="o", label="held out")
        keys = dict.fromkeys(key for line in metrics for key in line if key.startswith("loss_"))
        for key in keys:
            steps, losses = curve(key)
            right.plot(steps, smooth(losses), label=key.removeprefix("loss_"))
        for axes, heading in ((left, "loss"), (right, "training loss per section (smoothed)")):
            axes.set(title=heading, xlabel="step", ylabel="nats per learned token")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)
        figure.suptitle(title)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """The exponential moving average, bias-corrected as Adam's moments are (arXiv:1412.6980)."""
    smoothed, average = [], 0.0
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return smoothed
