"""Compare the arms of a training benchmark by their steps, and draw the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from fasttune.losses import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARM_COLOURS = {
    "plain": "tab:gray",
    "unsloth": "tab:orange",
    "fasttune": "tab:blue",
    "fast_path": "tab:green",
}


@dataclass(frozen=True)
class BenchStep:
    """One optimiser step of an arm.

    Attributes:
        seconds: from fetching the first row to updating the weights.
        tokens: of its rows, without padding.
        loss: mean over the learned tokens, in nats, before the update.
    """

    seconds: float
    tokens: int
    loss: float


def step_figures(steps: Mapping[str, Sequence[BenchStep]], block: int) -> dict[str, dict[str, Any]]:
    """Compute the figures of every arm from its steps; docs/performance.md explains them.

    The first block of steps warms up: its losses count, its times do not. Speedups are ratios of
    seconds for the same rows, to the arm of `reference_of`. Loss differences are relative to the
    plain arm; None without one.
    """
    reference, plain = _blocks(steps[reference_of(list(steps))], block), steps.get("plain")
    compared: dict[str, dict[str, Any]] = {}
    for arm, own in steps.items():
        blocks, counted = _blocks(own, block), own[block:]
        ratios = [seconds_of(a) / seconds_of(b) for a, b in zip(reference, blocks, strict=True)]
        differences = [abs(a.loss / b.loss - 1) for a, b in zip(own, plain or own, strict=True)]
        compared[arm] = {
            "tokens_per_second": median(map(tokens_per_second, blocks)),
            "tokens_per_second_overall": tokens_per_second(counted),
            "seconds_per_step": median(step.seconds for step in counted),
            "warmup_seconds": seconds_of(own[:block]),
            "speedup": {"median": median(ratios), "low": min(ratios), "high": max(ratios)},
            "first_loss": own[0].loss,
            "final_loss": _final_loss(own),
            "final_loss_difference": _final_loss(own) / _final_loss(plain) - 1 if plain else None,
            "largest_loss_difference": max(differences) if plain else None,
        }
    return compared


def reference_of(arms: Sequence[str]) -> str:
    """The arm that the others' speed is compared with: unsloth, or else the first."""
    return "unsloth" if "unsloth" in arms else arms[0]


def seconds_of(steps: Sequence[BenchStep]) -> float:
    return sum(step.seconds for step in steps)


def tokens_per_second(steps: Sequence[BenchStep]) -> float:
    return sum(step.tokens for step in steps) / seconds_of(steps)


def _blocks(steps: Sequence[BenchStep], block: int) -> list[Sequence[BenchStep]]:
    """The blocks that count: all but the first."""
    return [steps[start : start + block] for start in range(block, len(steps), block)]


def _final_loss(steps: Sequence[BenchStep]) -> float:
    return fmean(step.loss for step in steps[-max(1, len(steps) // 4) :])


def plot(result: Mapping[str, Any], target: Path) -> None:
    """Draw a result's seconds per step, tokens per second and losses, and save them as PNG."""
    arms, block = result["arms"], result["block"]
    with drawing(target, 14, 4.4) as figure:
        times, speeds, losses = figure.subplots(1, 3)
        for arm, values in arms.items():
            numbers = range(1, len(values["steps"]) + 1)
            style: dict[str, Any] = {"color": ARM_COLOURS[arm], "marker": ".", "linewidth": 1}
            for axes, key in ((times, "seconds"), (losses, "loss")):
                axes.plot(numbers, [step[key] for step in values["steps"]], label=arm, **style)
        times.axvspan(0.5, block + 0.5, color="black", alpha=0.07, linewidth=0, label="warm-up")
        times.set(title="seconds per step (lower is better)", xlabel="step", ylabel="seconds")
        times.set_ylim(bottom=0)
        losses.set(title="training loss", xlabel="step", ylabel="nats per learned token")
        for axes in (times, losses):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        _draw_speeds(speeds, arms, block)
        figure.suptitle(
            f"{result['template']}, {Path(result['model']).name}, {result['quantization']}, "
            f"{result['precision']}, {result['rows_per_step']} rows a step, {result['device']}"
        )


def _draw_speeds(axes: Axes, arms: Mapping[str, Any], block: int) -> None:
    """Draw a bar for each arm's median and a mark for each block."""
    reference, labels = reference_of(list(arms)), []
    for place, (arm, values) in enumerate(arms.items()):
        speed = values["tokens_per_second"]
        axes.barh(place, speed, color=ARM_COLOURS[arm], alpha=0.5, height=0.6)
        blocks = _blocks([BenchStep(**step) for step in values["steps"]], block)
        speeds = [tokens_per_second(steps) for steps in blocks]
        axes.plot(speeds, [place] * len(speeds), "|", color=ARM_COLOURS[arm], markersize=14)
        ratio = f"{values['speedup']['median']:.2f} x {reference}" if arm != reference else ""
        labels.append("\n".join(filter(None, (arm, f"{speed:.0f} tokens/s", ratio))))
    axes.set_yticks(range(len(arms)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set(title="tokens per second (median and blocks)", xlabel="tokens per second, no padding")
    axes.grid(alpha=0.25, axis="x")
