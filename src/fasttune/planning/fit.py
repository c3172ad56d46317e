"""Find settings that fit a device."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import ceil
from typing import Any

from fasttune.config import RunConfig, Switch, load_config, with_training
from fasttune.machine import Device
from fasttune.models.choices import decide
from fasttune.planning.cost import Workload, memory
from fasttune.planning.shape import Shape

MARGIN = 0.9
"""Share of the memory that "auto", suggestions and the largest batch may fill. Predictions are
within 15 % of measurements. A run is refused only above the whole memory."""


def workload_of(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> Workload:
    """Work out the step of a run, with `train.gradient_checkpointing: auto` as off and
    `model.nf4_copy: auto` as on.

    Memory follows from the longest rows together, time from the mean step.

    Args:
        lengths: tokens of the training rows; None: all have `model.max_length`.
    """
    train, choices = config.train, decide(config, device)
    tokens = sorted(lengths or [config.model.max_length], reverse=True)
    rows = train.batch_size if lengths is None else min(train.batch_size, len(lengths))
    step_rows = rows * train.gradient_accumulation
    step_tokens = step_rows * sum(tokens) / len(tokens)
    # A pack takes rows of the whole step, up to a batch of the longest rows allowed.
    budget = max(train.batch_size * config.model.max_length, tokens[0])
    packed = min(sum(tokens[:step_rows]) if lengths else budget, budget)
    packs = ceil(step_tokens / budget)
    # Unsloth's own layers need no mask, nor does a pack of one row.
    masked = choices.attention == "mask" and not shape.in_unsloth and packs < step_rows
    held_out = config.data.eval is not None or config.data.eval_fraction > 0
    evaluated = train.eval_batch_size * tokens[0] if held_out else 0
    return Workload(
        shape=shape,
        quantized=choices.quantized,
        copied=choices.nf4_copy,
        fast=not choices.why_plain and (device.kind == "cpu" or shape.model_type == "phi"),
        dtype=choices.dtype,
        optimizer_bytes=2 if "8bit" in choices.optimizer else 8,
        checkpointing=train.gradient_checkpointing in ("on", "unsloth"),
        peak_tokens=packed if train.packing else rows * tokens[0],
        step_tokens=step_tokens,
        attended=sum(n * n for n in tokens) / sum(tokens),
        masked=step_tokens / packs if train.packing and masked else 0.0,
        batches=packs if train.packing else train.gradient_accumulation,
        rank=config.lora.r,
        targets=config.lora.targets,
        varied=tokens[0] != tokens[-1],
        eval_tokens=min(evaluated, budget) if train.packing else evaluated,
        answered=min(config.samples.count, config.samples.batch_size),
        prompt_tokens=tokens[0],
        new_tokens=config.samples.max_new_tokens,
        side_by_side=choices.side_by_side,
    )


def decide_memory(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> RunConfig:
    """Replace `train.gradient_checkpointing: auto` and, for NF4 on a CPU, `model.nf4_copy: auto`.

    The first of these that fits wins, or else the last: a copy without checkpointing, no copy, a
    copy with checkpointing (Unsloth's on CUDA, which offloads; torch's on a CPU), checkpointing
    without a copy.

    Raises:
        FasttuneError: the model has no matrix named like a LoRA target.
    """
    auto_checkpointing = config.train.gradient_checkpointing == "auto"
    auto_copy = decide(config, device).nf4_copy and config.model.nf4_copy == "auto"
    decided = config
    copies: tuple[Switch, Switch] = ("on", "off")
    for checkpointing, copy in product(("off", _recomputing(device)), copies):
        if auto_checkpointing:
            decided = with_training(decided, gradient_checkpointing=checkpointing)
        if auto_copy:
            decided = replace(decided, model=replace(decided.model, nf4_copy=copy))
        if _fits(decided, shape, device, lengths):
            break
    return decided


def suggest(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> tuple[str, ...]:
    """Find settings with which the run fits, as KEY=VALUE; empty if none of those tried fits.

    Each change is also tried with evaluation and answers one row at a time.
    """
    one_at_a_time = {"train.eval_batch_size": 1, "samples.batch_size": 1}
    for change, more in product(_changes(config, device), ({}, one_at_a_time)):
        settings = {**change, **more}
        changed = load_config(None, list(settings.items()), config)
        if "model.quantization" in settings and changed.model.nf4_copy == "auto":
            # "auto" makes no copy if memory is short.
            changed = replace(changed, model=replace(changed.model, nf4_copy="off"))
        shorter = lengths and [min(n, changed.model.max_length) for n in lengths]
        if _fits(changed, shape, device, shorter):
            return tuple(f"{key}={value}" for key, value in settings.items())
    return ()


def _changes(config: RunConfig, device: Device) -> Iterator[dict[str, Any]]:
    """Yield settings to try, the cheapest first: smaller batches of the same step; then with
    checkpointing; then also with the base in NF4; then also with shorter rows."""
    bases: list[dict[str, Any]] = [{}]
    if config.train.gradient_checkpointing == "off":
        bases.append({"train.gradient_checkpointing": _recomputing(device)})
    quantization = config.model.quantization
    if quantization == "none" or (quantization == "auto" and device.kind == "cpu"):
        bases.append({**bases[-1], "model.quantization": "nf4"})
    length, smallest = config.model.max_length, bases[-1]
    while (length := length // 2) >= 128:
        bases.append({**smallest, "model.max_length": length})
    rows, repeats = config.train.batch_size, config.train.gradient_accumulation
    for base in bases:
        yield base
        for size in range(rows - 1, 0, -1):
            if rows % size == 0:
                more = repeats * rows // size
                yield {**base, "train.batch_size": size, "train.gradient_accumulation": more}


def largest_batch(
    config: RunConfig, shape: Shape, device: Device, length: int, checkpointing: bool
) -> int:
    """Find how many rows of `length` tokens fit in a training batch, with the margin."""
    tried = replace(
        with_training(config, gradient_checkpointing="on" if checkpointing else "off"),
        model=replace(config.model, max_length=length),
        data=replace(config.data, eval=None, eval_fraction=0.0),
        samples=replace(config.samples, count=0),
    )

    def too_large(rows: int) -> bool:
        return not _fits(with_training(tried, batch_size=rows), shape, device)

    return bisect_left(range(1, 10**9), True, key=too_large)


def _recomputing(device: Device) -> str:
    return "unsloth" if device.kind == "cuda" else "on"


def _fits(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> bool:
    work = workload_of(config, shape, device, lengths)
    return memory(work, device.kind).needed <= MARGIN * device.memory
