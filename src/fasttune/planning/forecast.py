"""Forecast a run's memory and time on a device, without loading the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

from fasttune import machine
from fasttune.config import RunConfig, with_training
from fasttune.encoding.cache import encode_rows
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.machine import GB, Device
from fasttune.models.base import trainable
from fasttune.models.choices import decide
from fasttune.models.demo import DEMO_MODEL
from fasttune.models.tokenizer import CUDA_DEFAULT, load_tokenizer
from fasttune.planning import cost
from fasttune.planning.cost import Memory, StepTime, Workload
from fasttune.planning.devices import find_device, measured_matmul, with_figures
from fasttune.planning.fit import decide_memory, largest_batch, suggest, workload_of
from fasttune.planning.schedule import settle, steps
from fasttune.planning.shape import BUILT_IN, Shape, UnknownArchitecture, read_shape

log = logging.getLogger(__name__)

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
"""Lengths in tokens for which `Forecast.largest_batches` counts rows."""


@dataclass(frozen=True, repr=False)
class Forecast:
    """The costs of a run on a device.

    Attributes:
        config: with "auto" replaced in `train.gradient_checkpointing` and `model.nf4_copy`.
        rows: number of training rows; None if they were not counted.
        steps: optimiser steps; None if neither rows nor `train.max_steps` are known.
        suggestion: settings with which a run that does not fit would; empty if none is known.
    """

    config: RunConfig
    device: Device
    workload: Workload
    memory: Memory
    time: StepTime | None
    rows: int | None
    steps: int | None
    suggestion: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.memory.needed <= self.device.memory

    @property
    def duration(self) -> str:
        """How long the steps take, for people; "" if it is not known."""
        if self.steps is None or self.time is None:
            return ""
        seconds = self.steps * self.time.expected
        # Below that, launching kernels takes longer than the arithmetic.
        return f"about {spell(seconds)}" if seconds >= 60 else "seconds to minutes"

    def line(self) -> str:
        """The short form: memory with its largest parts, the decisions, steps and time."""
        largest = sorted(self.memory.parts().items(), key=lambda part: -part[1])
        named = ", ".join(f"{name} {size / GB:.1f}" for name, size in largest if size >= 0.05 * GB)
        base = "in NF4" if self.workload.quantized else "unquantised"
        if self.workload.quantized and self.device.kind == "cpu":
            base += ", dequantised once" if self.workload.copied else ", dequantised in each pass"
        facts = [
            f"plan: {self.memory.peak / GB:.1f} of {self.device.memory / GB:.1f} GB ({named})",
            f"base {base}, checkpointing {'on' if self.workload.checkpointing else 'off'}",
        ]
        if self.steps is not None:
            facts.append(f"{self.steps} steps")
            facts += [self.duration] if self.duration else []
        return ", ".join(facts)

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
        """Refuse a run that does not fit. With `train.ignore_plan`, log a warning instead.

        Raises:
            FasttuneError: the plan needs more than the device has.
        """
        if self.fits:
            return
        need, have = self.memory.needed / GB, self.device.memory / GB
        problem = f"the run needs {need:.1f} GB, and {self.device.name} has {have:.1f} GB"
        if self.config.train.ignore_plan:
            log.warning("warning: %s; trying it because of train.ignore_plan=true", problem)
            return
        hint = "take a smaller model or a larger device; fasttune plan shows what fits"
        if self.suggestion:
            hint = f"this fits: {' '.join(self.suggestion)}"
        parts = self.memory.unmapped.parts()
        raise FasttuneError(
            problem,
            ", ".join(f"{name} {size / GB:.1f} GB" for name, size in parts.items() if size),
            f"{hint}; or try it anyway: train.ignore_plan=true",
        )

    def smaller(self) -> tuple[str, ...]:
        """Suggest settings that take a tenth less memory than one row at a time, if any do."""
        rows = self.config.train.batch_size * self.config.train.gradient_accumulation
        config = with_training(self.config, batch_size=1, gradient_accumulation=rows)
        shape, lengths = self.workload.shape, [config.model.max_length]
        memory = cost.memory(workload_of(config, shape, self.device, lengths), self.device.kind)
        return suggest(config, shape, replace(self.device, memory=memory.needed), lengths)

    def largest_batches(self) -> list[dict[str, int]]:
        """Count the rows in the largest batch that fits, for each length in tokens, without ("off")
        and with checkpointing ("on")."""
        shape = self.workload.shape
        return [
            {
                "tokens": length,
                "off": largest_batch(self.config, shape, self.device, length, False),
                "on": largest_batch(self.config, shape, self.device, length, True),
            }
            for length in LENGTHS
            if length <= shape.max_length
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: bytes, FLOPs, seconds."""
        work, time = self.workload, self.time
        flops = cost.flops_per_token(work)
        return {
            "model": work.shape.name,
            "parameters": work.shape.parameters,
            "lora_parameters": work.lora_parameters,
            "device": asdict(self.device),
            "quantization": "nf4" if work.quantized else "none",
            "number_bytes": work.number_bytes,
            "gradient_checkpointing": self.config.train.gradient_checkpointing,
            "attention": decide(self.config, self.device).attention,
            "peak_tokens": work.peak_tokens,
            "peak_bytes": round(self.memory.peak),
            "bytes": {name: round(size) for name, size in self.memory.parts().items()},
            "fits": self.fits,
            "suggestion": list(self.suggestion),
            "rows": self.rows,
            "steps": self.steps,
            "step_tokens": round(work.step_tokens, 1),
            "keys_per_query": round(work.scored, 1),
            "flops_per_token": round(flops),
            "flops_per_step": round(flops * work.step_tokens),
            "dequantized_bytes_per_step": round(cost.dequantized_bytes(work, self.device.kind)),
            "seconds_per_step": time
            and {"bound": time.bound, "expected": time.expected, "efficiency": cost.EFFICIENCY},
        }


def plan(job: Job | RunConfig, gpu: str | None = None) -> Forecast:
    """Forecast the memory, arithmetic and minimum time of a run, and whether it fits.

    Args:
        job: its rows are counted in tokens. For a config, each row counts as `model.max_length`.
        gpu: a name, as t4, or a memory, as 16GB; by default this machine.

    Raises:
        FasttuneError: there is no such GPU, or the planner does not know the model's shape.
    """
    config = job if isinstance(job, RunConfig) else job.config
    device = find_device(gpu) if gpu is not None else with_figures(machine.this_device())
    name = config.model.name or (CUDA_DEFAULT if device.kind == "cuda" else DEMO_MODEL)
    if name not in BUILT_IN:
        config = replace(config, model=trainable(config.model, name))
    shape = read_shape(name)
    lengths = None if isinstance(job, RunConfig) else _lengths(job, name)
    config = settle(config, name, None if lengths is None else len(lengths), device.processes)
    return forecast(config, shape, device, lengths)


def _lengths(job: Job, model: str) -> list[int] | None:
    """Count the tokens of the training rows. Returns None if the tokenizer cannot be loaded."""
    try:
        tokenizer = load_tokenizer(job.model if model == DEMO_MODEL else model, job.template.end)
    except FasttuneError as error:
        reason = error.where or error.message
        log.info("rows not counted, taken as model.max_length tokens: %s", reason)
        return None
    return encode_rows(job.template, job.train, tokenizer, job.config, "training").lengths


def spell(seconds: float) -> str:
    """Format a duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> Forecast:
    """Forecast a run. The speed of a CPU is measured.

    Args:
        lengths: tokens of the training rows; None: all have `model.max_length`.

    Raises:
        FasttuneError: the model has no matrix named like a LoRA target.
    """
    decided = decide_memory(config, shape, device, lengths)
    work = workload_of(decided, shape, device, lengths)
    if device.kind == "cpu" and device.matmul is None:
        device = replace(device, matmul=measured_matmul(bf16=work.number_bytes == 2))
    counted = lengths is not None or config.train.max_steps is not None
    result = Forecast(
        config=decided,
        device=device,
        workload=work,
        memory=cost.memory(work, device.kind),
        time=cost.step_time(work, device),
        rows=None if lengths is None else len(lengths),
        steps=steps(len(lengths or ()), config, device.processes) if counted else None,
    )
    if result.fits:
        return result
    return replace(result, suggestion=suggest(decided, shape, device, lengths))


def foresee(
    config: RunConfig, model: str, lengths: Sequence[int], device: Device
) -> Forecast | None:
    """Forecast a run and log the short form, or log that the planner does not know the model.

    Raises:
        FasttuneError: the model has no matrix named like a LoRA target.
    """
    try:
        shape = read_shape(model)
    except UnknownArchitecture as error:
        log.info("no plan: %s", error.message)
        return None
    result = forecast(config, shape, with_figures(device), lengths)
    log.info(result.line())
    return result
