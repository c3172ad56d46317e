"""The learning rate, the warm-up and the number of steps of a run."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from fasttune.config import RunConfig, TrainConfig, with_training
from fasttune.errors import FasttuneError, reason
from fasttune.models.whole import tensors_of
from fasttune.planning.shape import UnknownArchitecture, read_shape

log = logging.getLogger(__name__)

RATE, SMALLER_MODELS = 2e-4, ((200e6, 2e-3), (1e9, 5e-4))
"""The learning rate, and higher ones for models of fewer parameters."""
ENOUGH, MOST_EPOCHS = 50, 10
"""Rows are repeated until a run has this many steps, but not more often than that."""
MOST_WARMUP = 5
"""A tenth of all steps are warm-up, but not more than these."""

BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the held-out loss."""


def settle(config: RunConfig, model: str, rows: int | None, processes: int = 1) -> RunConfig:
    """Replace "auto" in the learning rate, the epochs and the warm-up by what suits the model and
    the rows, log it with the reason, and check the warm-up.

    Args:
        rows: number of training rows; None if it is unknown, which counts as many.

    Raises:
        FasttuneError: the learning rate would be 0 in every step.
    """
    train, chosen, reasons = config.train, dict[str, Any](), list[str]()
    if train.learning_rate == "auto":
        size = _parameters(model)
        rates = [rate for below, rate in SMALLER_MODELS if size and size < below]
        chosen["learning_rate"] = [*rates, RATE][0]
        named = f"{size / 1e6:,.1f} M parameters" if size else "a model of unknown size"
        reasons.append(f"learning rate {chosen['learning_rate']:g} ({named})")
    count = train.max_steps if rows is None else steps(rows, config, processes)
    if train.epochs == "auto":
        chosen["epochs"] = 1.0 if rows is None else float(_epochs(rows, train, processes))
        if rows is not None and train.max_steps is None:
            reasons.append(f"epochs {chosen['epochs']:g} ({rows} rows, {count} steps)")
    if train.warmup_steps == "auto":
        warmup = MOST_WARMUP if count is None else min(MOST_WARMUP, count // 10)
        chosen["warmup_steps"] = warmup
        if not train.warmup_ratio:
            reasons.append(f"warm-up {warmup}")
    if reasons:
        log.info("auto: %s", ", ".join(reasons))
    config = with_training(config, **chosen)
    if count is not None and (note := check_warmup(config.train, count)):
        log.info("note: %s", note)
    return config


def steps(rows: int, config: RunConfig, processes: int = 1) -> int:
    """Count the optimizer steps of a run over `rows` rows, as transformers' Trainer does. Each
    process of the run adds as many rows to a step."""
    train = config.train
    if train.max_steps is not None:
        return train.max_steps
    epochs = _epochs(rows, train, processes) if train.epochs == "auto" else float(train.epochs)
    return math.ceil(_steps_per_epoch(rows, train, processes) * epochs)


def _steps_per_epoch(rows: int, train: TrainConfig, processes: int) -> int:
    batches = math.ceil(rows / train.batch_size)
    return max(1, math.ceil(batches / (train.gradient_accumulation * processes)))


def _epochs(rows: int, train: TrainConfig, processes: int) -> int:
    return min(MOST_EPOCHS, math.ceil(ENOUGH / _steps_per_epoch(rows, train, processes)))


def _parameters(model: str) -> int | None:
    """The number of a model's parameters, from its config.json or else its weights."""
    try:
        return read_shape(model).parameters
    except UnknownArchitecture:
        files = Path(model).glob("*.safetensors")
        shapes = (entry["shape"] for file in files for entry in tensors_of(file).values())
        return sum(map(math.prod, shapes)) or None


def check_schedule(train: TrainConfig, evaluate: bool) -> None:
    """Refuse a schedule whose options are wrong, or that needs held-out rows where none are."""
    if train.schedule in BY_EVALUATION and not evaluate:
        what = f"{train.schedule} follows the held-out loss, but no row is held out"
        hint = "set data.eval_fraction, or choose another schedule"
        raise FasttuneError(what, "train.schedule", hint)
    try:
        if train.schedule in ("constant", "constant_with_warmup") and train.schedule_options:
            raise ValueError("it takes no options")  # transformers ignores them
        _scheduler(train, warmup=1, steps=10)
    except (TypeError, ValueError) as error:
        raise FasttuneError(
            f"cannot create the schedule {train.schedule}: {reason(error)}",
            f"train.schedule_options: {train.schedule_options}",
            f"use the arguments of transformers' function for the schedule {train.schedule}",
        ) from error


def check_warmup(train: TrainConfig, steps: int) -> str:
    """Say how far the learning rate gets if all steps of a run are warm-up; "" if they are not. A
    rate of 0 in every step is refused."""
    key, value, warmup = "train.warmup_steps", float(train.warmup_steps), int(train.warmup_steps)
    if train.warmup_ratio:
        key, value = "train.warmup_ratio", train.warmup_ratio
        warmup = math.ceil(steps * value)  # as transformers does
    if steps > warmup or train.schedule in ("constant", *BY_EVALUATION):
        return ""
    factor = _scheduler(train, warmup, steps).lr_lambdas[0]
    highest = float(train.learning_rate) * max(factor(0), factor(steps - 1))
    of = f"all {steps} steps are" if steps > 1 else "the only step is"
    if not highest:
        what = f"nothing would be learned: {of} warm-up, with a learning rate of 0"
        raise FasttuneError(what, f"{key}={value:g}", f"set {key}=0, or train in more steps")
    top = f"the learning rate gets to {highest:.2g} of {train.learning_rate:.2g}"
    return f"{of} warm-up ({key}={value:g}): {top}; lower it, or train in more steps"


def _scheduler(train: TrainConfig, warmup: int, steps: int) -> Any:
    """The schedule as transformers makes it, on a weight that nothing trains."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return get_scheduler(train.schedule, optimizer, warmup, steps, dict(train.schedule_options))
