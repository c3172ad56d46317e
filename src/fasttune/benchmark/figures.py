"""The figures of a benchmark, from the steps of its arms, and what shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from fasttune.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "plain": "tab:gray",
    "unsloth": "tab:orange",
    "fasttune": "tab:blue",
    "fast_path": "tab:green",
}


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        seconds: from the first row fetched to the weights updated.
        tokens: of its rows, padding not counted.
        loss: mean over the learned tokens, in nats, before the update.
    """

    seconds: float
    tokens: int
    loss: float


def figures(taken: Mapping[str, Sequence[Step]], block: int) -> dict[str, dict[str, Any]]:
    """The figures of every arm. The first block warms up: its losses count, its times do not.

    tokens_per_second: median over the counted blocks of tokens / seconds.
    tokens_per_second_overall: tokens / seconds of all counted steps.
    seconds_per_step: median over the counted steps.
    warmup_seconds: of the first block, with whatever is compiled in it.
    speedup: of each block the seconds of the reference (unsloth, or else the first arm) over the
        arm's, on the same rows; the median, the lowest and the highest of them.
    first_loss: of the first step, before any update.
    final_loss: mean over the last quarter of the steps.
    final_loss_difference: relative to the plain arm's; None without one.
    largest_loss_difference: of a single step, relative to the plain arm's.
    """
    reference = reference_of(list(taken))
    seconds = {arm: [_seconds(part) for part in _blocks(s, block)] for arm, s in taken.items()}
    found: dict[str, dict[str, Any]] = {}
    for arm, steps in taken.items():
        parts, counted = _blocks(steps, block), steps[block:]
        speeds = [_tokens(part) / _seconds(part) for part in parts]
        ratios = [a / b for a, b in zip(seconds[reference], seconds[arm], strict=True)]
        found[arm] = {
            "tokens_per_second": median(speeds),
            "tokens_per_second_overall": _tokens(counted) / _seconds(counted),
            "seconds_per_step": median(step.seconds for step in counted),
            "warmup_seconds": _seconds(steps[:block]),
            "speedup": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
            "first_loss": steps[0].loss,
            "final_loss": _final(steps),
            **_differences(steps, taken.get("plain")),
        }
    return found


def reference_of(arms: Sequence[str]) -> str:
    """The arm that the others' speed is compared with."""
    return "unsloth" if "unsloth" in arms else arms[0]


def _blocks(steps: Sequence[Step], block: int) -> list[Sequence[Step]]:
    """The blocks that count: all but the first."""
    return [steps[at : at + block] for at in range(block, len(steps), block)]


def _seconds(steps: Sequence[Step]) -> float:
    return sum(step.seconds for step in steps)


def _tokens(steps: Sequence[Step]) -> int:
    return sum(step.tokens for step in steps)


def _final(steps: Sequence[Step]) -> float:
    return fmean(step.loss for step in steps[-max(1, len(steps) // 4) :])


def _differences(steps: Sequence[Step], plain: Sequence[Step] | None) -> dict[str, float | None]:
    if plain is None:
        return {"final_loss_difference": None, "largest_loss_difference": None}
    return {
        "final_loss_difference": _final(steps) / _final(plain) - 1,
        "largest_loss_difference": max(
            abs(a.loss / b.loss - 1) for a, b in zip(steps, plain, strict=True)
        ),
    }


def plot(result: Mapping[str, Any], target: Path) -> None:
    """Draw seconds per step, tokens per second and losses of a result as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    arms, block = result["arms"], result["block"]
    figure = Figure(figsize=(14, 4.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    times, speeds, losses = figure.subplots(1, 3)
    for arm, values in arms.items():
        numbers = range(1, len(values["steps"]) + 1)
        for axes, key in ((times, "seconds"), (losses, "loss")):
            drawn = [step[key] for step in values["steps"]]
            axes.plot(numbers, drawn, color=COLOURS[arm], label=arm, marker=".", linewidth=1)
    times.axvspan(0.5, block + 0.5, color="black", alpha=0.07, linewidth=0)
    times.annotate(
        "warm-up", (block / 2 + 0.5, 0.98), xycoords=("data", "axes fraction"),
        ha="center", va="top", fontsize=8, color="0.4",
    )  # fmt: skip
    times.set(title="seconds per step (lower is better)", ylabel="seconds")
    times.set_ylim(bottom=0)
    losses.set(title="training loss", ylabel="nats per learned token")
    for axes in (times, losses):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    losses.legend(frameon=False)
    _draw_speeds(speeds, arms, block)
    figure.suptitle(
        f"{result['template']}, {Path(result['model']).name}, {result['quantization']}, "
        f"{result['precision']}, {result['rows_per_step']} rows a step, {result['device']}"
    )
    with atomic_path(target) as temporary:
        figure.savefig(temporary)


def _draw_speeds(axes: Axes, arms: Mapping[str, Any], block: int) -> None:
    """Bars of the medians, over them every block."""
    reference = reference_of(list(arms))
    names = []
    for place, (arm, values) in enumerate(arms.items()):
        middle = values["tokens_per_second"]
        axes.barh(place, middle, color=COLOURS[arm], alpha=0.5, height=0.6)
        parts = _blocks([Step(**step) for step in values["steps"]], block)
        each = [_tokens(part) / _seconds(part) for part in parts]
        axes.plot(each, [place] * len(each), "|", color=COLOURS[arm], markersize=14)
        ratio = f"{values['speedup']['median']:.2f} x {reference}" if arm != reference else ""
        names.append("\n".join(filter(None, (arm, f"{middle:.0f} tokens/s", ratio))))
    axes.set_yticks(range(len(arms)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set(title="tokens per second (median and blocks)", xlabel="tokens per second, no padding")
    axes.grid(alpha=0.25, axis="x")
