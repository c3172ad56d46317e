"""Which settings fit a device: the step a config means, the fastest of what saves memory, and what
to change where a run does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Literal

from fasttune.config import RunConfig, with_training
from fasttune.machine import Device
from fasttune.models.choices import decide
from fasttune.planning.cost import Workload, memory
from fasttune.planning.shape import Shape

Switch = Literal["on", "off"]

MARGIN = 0.9
"""Share of the memory that "auto" and the table of what fits may fill; the prediction is checked to
within 15 %. A run is refused only above the whole memory."""


def workload_of(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> Workload:
    """The step of a run, with `train.gradient_checkpointing: auto` as off and `model.nf4_copy:
    auto` as on.

    The largest batch or pack counts for memory: the longest rows together. The mean counts for
    time.

    Args:
        lengths: tokens of the rows to train on; None: all have `model.max_length`.

    Raises:
        FasttuneError: a LoRA target is no matrix of the model.
    """
    chosen, choices = config.train, decide(config, device)
    tokens = sorted(lengths or [config.model.max_length], reverse=True)
    rows = chosen.batch_size if lengths is None else min(chosen.batch_size, len(lengths))
    step_rows = rows * chosen.gradient_accumulation
    step_tokens = step_rows * sum(tokens) / len(tokens)
    # A pack takes rows of the whole step, up to a batch of the longest that are allowed.
    budget = max(chosen.batch_size * config.model.max_length, tokens[0])
    packed = min(sum(tokens[:step_rows]) if lengths else budget, budget)
    packs = ceil(step_tokens / budget)
    # Unsloth's own layers need no mask, nor does a row by itself.
    masked = choices.attention == "mask" and not shape.in_unsloth and packs < step_rows
    shape.adapted(config.lora.targets)
    held_out = config.data.eval is not None or config.data.eval_fraction > 0
    asked = config.samples
    evaluated = chosen.eval_batch_size * tokens[0] if held_out else 0
    return Workload(
        shape=shape,
        quantized=choices.quantized,
        copied=choices.nf4_copy,
        fast=not choices.why_plain and (device.kind == "cpu" or shape.model_type == "phi"),
        dtype=choices.dtype,
        optimizer_bytes=2 if "8bit" in choices.optimizer else 8,
        checkpointing=chosen.gradient_checkpointing in ("on", "unsloth"),
        peak_tokens=packed if chosen.packing else rows * tokens[0],
        step_tokens=step_tokens,
        attended=sum(n * n for n in tokens) / sum(tokens),
        masked=step_tokens / packs if chosen.packing and masked else 0.0,
        batches=packs if chosen.packing else chosen.gradient_accumulation,
        rank=config.lora.r,
        targets=config.lora.targets,
        varied=tokens[0] != tokens[-1],
        eval_tokens=min(evaluated, budget) if chosen.packing else evaluated,
        answered=min(asked.count, asked.batch_size),
        prompt_tokens=tokens[0],
        new_tokens=asked.max_new_tokens,
        side_by_side=choices.side_by_side,
    )


def decide_memory(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> RunConfig:
    """`train.gradient_checkpointing: auto` and, on a CPU in NF4, `model.nf4_copy: auto` replaced:
    the fastest that fits, or else what takes the least.

    These are, in order: a copy and no checkpointing, no copy, a copy and checkpointing (Unsloth's
    offloaded on CUDA, torch's on a CPU), neither copy nor activations. Any other setting stays.
    """
    recompute = "unsloth" if device.kind == "cuda" else "on"
    copies = decide(config, device).nf4_copy and config.model.nf4_copy == "auto"
    tried = config
    choices: tuple[tuple[str, Switch], ...] = (
        ("off", "on"), ("off", "off"), (recompute, "on"), (recompute, "off")
    )  # fmt: skip
    for word, copy in choices:
        tried = config
        if config.train.gradient_checkpointing == "auto":
            tried = with_training(tried, gradient_checkpointing=word)
        if copies:
            tried = replace(tried, model=replace(tried.model, nf4_copy=copy))
        if _fits(workload_of(tried, shape, device, lengths), device):
            break
    return tried


def suggest(
    config: RunConfig, shape: Shape, device: Device, lengths: Sequence[int] | None = None
) -> tuple[str, ...]:
    """The first change of settings with which the run fits, the cheapest tried first; empty if
    none of them is enough. Each is tried with evaluation and answers one row at a time as well."""
    fewer = ("train.eval_batch_size=1", "samples.batch_size=1")
    for words, changed in _changes(config, device.kind):
        shorter = lengths and [min(n, changed.model.max_length) for n in lengths]
        one = replace(
            with_training(changed, eval_batch_size=1),
            samples=replace(changed.samples, batch_size=1),
        )
        for more, tried in ((), changed), (fewer, one):
            if _fits(workload_of(tried, shape, device, shorter), device):
                return (*words, *more)
    return ()


def _fits(work: Workload, device: Device) -> bool:
    return memory(work, device.kind).needed <= MARGIN * device.memory


def _changes(config: RunConfig, kind: str) -> Iterator[tuple[tuple[str, ...], RunConfig]]:
    """Smaller batches of the same step; then blocks computed again; then both with the base in
    NF4; then shorter rows as well."""
    length = config.model.max_length
    bases: list[tuple[tuple[str, ...], RunConfig]] = [((), config)]
    if config.train.gradient_checkpointing == "off":
        word = "unsloth" if kind == "cuda" else "on"
        bases.append(
            (
                (f"train.gradient_checkpointing={word}",),
                with_training(config, gradient_checkpointing=word),
            )
        )
    words, last = bases[-1]
    asked = config.model.quantization
    if asked == "none" or (asked == "auto" and kind == "cpu"):
        words = (*words, "model.quantization=nf4")
        # Without a copy on a CPU, as "auto" will have it there; a GPU keeps none.
        last = replace(last, model=replace(last.model, quantization="nf4", nf4_copy="off"))
        bases.append((words, last))
    while (length := length // 2) >= 128:
        shorter = replace(last, model=replace(last.model, max_length=length))
        bases.append(((*words, f"model.max_length={length}"), shorter))
    for base_words, base in bases:
        batch, repeats = base.train.batch_size, base.train.gradient_accumulation
        for size in range(batch, 0, -1):
            if batch % size:
                continue
            more = repeats * batch // size
            smaller = (
                (f"train.batch_size={size}", f"train.gradient_accumulation={more}")
                if size < batch
                else ()
            )
            yield (
                (*base_words, *smaller),
                with_training(base, batch_size=size, gradient_accumulation=more),
            )


def largest_batch(
    config: RunConfig, shape: Shape, device: Device, length: int, checkpointing: bool
) -> int:
    """The most rows of `length` tokens that fit in a training batch, with the margin; 0 if none
    does."""
    word = "on" if checkpointing else "off"
    asked = replace(
        with_training(config, gradient_checkpointing=word),
        model=replace(config.model, max_length=length),
        data=replace(config.data, eval=None, eval_fraction=0.0),
        samples=replace(config.samples, count=0),
    )

    def fits(rows: int) -> bool:
        return _fits(workload_of(with_training(asked, batch_size=rows), shape, device), device)

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
