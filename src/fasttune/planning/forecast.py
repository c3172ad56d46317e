"""What a run will cost on a device, whether it fits, and if not, the setting with which it does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from fasttune.config import RunConfig, steps
from fasttune.errors import FasttuneError
from fasttune.machine import GB, Device
from fasttune.models.choices import Choices, decide
from fasttune.planning import cost
from fasttune.planning.cost import Memory, Time, Workload
from fasttune.planning.devices import measured_matmul, with_figures
from fasttune.planning.fit import decide_memory, suggest, workload_of
from fasttune.planning.shape import Shape, UnknownArchitecture, read_shape

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Forecast:
    """The costs of a run on a device.

    Attributes:
        config: with `train.gradient_checkpointing` and `model.nf4_copy` decided where they were
            "auto".
        rows: number of rows to train on, or None where none were counted: then every row is taken
            to have `model.max_length` tokens.
        steps: optimiser steps, or None where neither rows nor `train.max_steps` are known.
        suggestion: settings with which a run that does not fit does; empty where it fits, and
            where none of those tried is enough.
    """

    config: RunConfig
    device: Device
    workload: Workload
    memory: Memory
    time: Time | None
    rows: int | None
    steps: int | None
    suggestion: tuple[str, ...]

    @property
    def choices(self) -> Choices:
        """What the device decides; checkpointing and the copy of NF4 weights by what fits."""
        return decide(self.config, self.device)

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.device.memory

    def line(self) -> str:
        """The short form: memory with its largest parts, the decisions, steps and time."""
        largest = sorted(self.memory.parts().items(), key=lambda part: -part[1])
        named = ", ".join(f"{name} {size / GB:.1f}" for name, size in largest if size >= 0.05 * GB)
        base = "in NF4" if self.workload.quantized else "unquantised"
        if self.workload.quantized and self.device.kind == "cpu":
            base += ", dequantised once" if self.workload.copied else ", dequantised in each pass"
        said = [
            f"plan: {self.memory.peak / GB:.1f} of {self.device.memory / GB:.1f} GB ({named})",
            f"base {base}, checkpointing {'on' if self.workload.checkpointing else 'off'}",
        ]
        if self.steps is not None:
            said.append(f"{self.steps} steps")
            if self.time is not None:
                said.append(f"at least {spell(self.steps * self.time.bound)}")
        return ", ".join(said)

    def __repr__(self) -> str:
        return self.line() + ("" if self.fits else "; DOES NOT FIT")

    def _repr_html_(self) -> str:
        peak = max(self.memory.peak, self.device.memory)
        bars = "".join(
            f"<tr><td>{name}</td><td style='text-align:right'>{size / GB:.2f} GB</td>"
            f"<td><div style='background:#4c78a8;height:1em;width:{300 * size / peak:.0f}px'></div>"
            "</td></tr>"
            for name, size in {**self.memory.parts(), "in all": self.memory.peak}.items()
        )
        return f"<p>{escape(repr(self))}</p><table>{bars}</table>"

    def require_fit(self) -> None:
        """Refuse what does not fit; with `train.ignore_plan` warn of it.

        Raises:
            FasttuneError: the plan needs more than the device has; the hint is the setting that
                would fit.
        """
        if self.fits:
            return
        parts = self.memory.unmapped.parts()
        need, have = self.memory.needed / GB, self.device.memory / GB
        problem = f"the run needs {need:.1f} GB, and {self.device.name} has {have:.1f} GB"
        if self.config.train.ignore_plan:
            log.warning("warning: %s; it is tried, as train.ignore_plan says", problem)
            return
        better = (
            f"this fits: {' '.join(self.suggestion)}"
            if self.suggestion
            else "take a smaller model or a larger device: see fasttune plan"
        )
        raise FasttuneError(
            problem,
            ", ".join(f"{k} {v / GB:.1f} GB" for k, v in parts.items() if v),
            f"{better}; or try it as it is: train.ignore_plan=true",
        )

    def smaller(self) -> tuple[str, ...]:
        """The first change of settings, the cheapest tried first, with which the plan takes a tenth
        less than with one row at a time; empty if there is none."""
        chosen = self.config.train
        repeats = chosen.batch_size * chosen.gradient_accumulation
        one = replace(chosen, batch_size=1, gradient_accumulation=repeats)
        config = replace(self.config, train=one)
        shape, length = self.workload.shape, config.model.max_length
        taken = cost.memory(workload_of(config, shape, self.device, [length]), self.device.kind)
        return suggest(config, shape, replace(self.device, memory=taken.needed), [length])

    def as_dict(self) -> dict[str, Any]:
        """JSON values: bytes, FLOPs, seconds."""
        time = self.time
        shape = self.workload.shape
        return {
            "model": shape.name,
            "parameters": shape.parameters,
            "lora_parameters": cost.lora_parameters(self.workload),
            "device": asdict(self.device),
            "quantization": "nf4" if self.workload.quantized else "none",
            "number_bytes": self.workload.number_bytes,
            "gradient_checkpointing": self.config.train.gradient_checkpointing,
            "attention": self.choices.attention,
            "peak_tokens": self.workload.peak_tokens,
            "peak_bytes": round(self.memory.peak),
            "bytes": {name: round(size) for name, size in self.memory.parts().items()},
            "fits": self.fits,
            "suggestion": list(self.suggestion),
            "rows": self.rows,
            "steps": self.steps,
            "step_tokens": round(self.workload.step_tokens, 1),
            "keys_per_query": round(self.workload.scored, 1),
            "flops_per_token": round(cost.flops_per_token(self.workload)),
            "flops_per_step": round(
                cost.flops_per_token(self.workload) * self.workload.step_tokens
            ),
            "dequantized_bytes_per_step": round(
                cost.dequantized_bytes(self.workload, self.device.kind)
            ),
            "seconds_per_step": time
            and {"bound": time.bound, "expected": time.expected, "efficiency": cost.EFFICIENCY},
        }


def spell(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> Forecast:
    """The costs of a run, and what to change where it does not fit. A CPU's speed is measured.

    Args:
        lengths: tokens of the rows to train on; None: all have `model.max_length`.

    Raises:
        FasttuneError: a LoRA target is no matrix of the model.
    """
    decided = decide_memory(config, shape, device, lengths)
    work = workload_of(decided, shape, device, lengths)
    known = lengths is not None or config.train.max_steps is not None
    if device.kind == "cpu" and device.matmul is None:
        device = replace(device, matmul=measured_matmul(bf16=work.number_bytes == 2))
    made = Forecast(
        config=decided,
        device=device,
        workload=work,
        memory=cost.memory(work, device.kind),
        time=cost.time(work, device),
        rows=None if lengths is None else len(lengths),
        steps=steps(len(lengths or ()), config, device.processes) if known else None,
        suggestion=(),
    )
    return made if made.fits else replace(made, suggestion=suggest(decided, shape, device, lengths))


def foresee(
    config: RunConfig,
    model: str,
    lengths: Sequence[int],
    device: Device,
) -> Forecast | None:
    """The forecast of a run on a device, with its short form logged.

    None, with a word about it, for an architecture that the planner does not know: it may be
    trained all the same.

    Raises:
        FasttuneError: a LoRA target is no matrix of the model.
    """
    try:
        shape = read_shape(model)
    except UnknownArchitecture as error:
        log.info("no plan: %s", error.message)
        return None
    made = forecast(config, shape, with_figures(device), lengths)
    log.info(made.line())
    return made
