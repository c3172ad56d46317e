"""Turn a run's config into the settings of TRL's trainer, and check what transformers must know."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import get_scheduler
from trl import SFTConfig

from fasttune.config import RunConfig, TrainConfig
from fasttune.errors import FasttuneError, reason
from fasttune.machine import tensor_device
from fasttune.models.choices import Choices
from fasttune.processes import count
from fasttune.runs import Run


def training_arguments(config: RunConfig, run: Run, evaluate: bool, choices: Choices) -> SFTConfig:
    """Return the settings of TRL's trainer; `evaluate` if the run has held-out rows."""
    chosen = config.train
    eval_every = _every(chosen.eval_steps) if evaluate else ("no", 1)
    save_every = _every(chosen.save_steps)
    if chosen.early_stopping is not None:
        if not evaluate:
            what = "early stopping needs held-out rows"
            raise FasttuneError(what, "train.early_stopping", "set data.eval_fraction")
        save_every = eval_every  # transformers needs a checkpoint for each evaluation
    return SFTConfig(
        output_dir=str(run.checkpoints.absolute()),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        # Each process receives the rows of the whole step and picks its share.
        per_device_train_batch_size=chosen.batch_size * chosen.gradient_accumulation,
        per_device_eval_batch_size=chosen.eval_batch_size * count(),
        use_cpu=count() > 1 and tensor_device() == "cpu",  # else accelerate looks for GPUs
        gradient_accumulation_steps=1,  # the collator divides a step's rows
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        lr_scheduler_kwargs=dict(chosen.schedule_options) or None,
        warmup_steps=chosen.warmup_ratio or chosen.warmup_steps,  # below 1: a share of all steps
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        neftune_noise_alpha=chosen.neftune_noise_alpha,
        optim=choices.optimizer,
        gradient_checkpointing=choices.checkpointing != "off",
        logging_steps=chosen.log_steps,
        eval_strategy=eval_every[0],
        eval_steps=eval_every[1],
        save_strategy=save_every[0],
        save_steps=save_every[1],
        save_total_limit=chosen.save_total_limit,
        load_best_model_at_end=chosen.early_stopping is not None,
        # Restores the count of evaluations without progress: a resumed run stops at the same step.
        restore_callback_states_from_checkpoint=chosen.early_stopping is not None,
        metric_for_best_model="eval_loss",
        report_to=list(chosen.report_to) or "none",
        run_name=run.name,
        seed=config.seed,
        bf16=choices.mixed_precision == "bf16",
        fp16=choices.mixed_precision == "fp16",
        max_length=config.model.max_length,
        packing=False,  # our collator packs
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,  # the loader returns numbers, not tensors
        logging_nan_inf_filter=False,  # our trainer checks, with one GPU sync
    )


BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the held-out loss."""


def check_schedule(chosen: TrainConfig, evaluate: bool) -> None:
    """Refuse a schedule whose options are wrong, or that needs held-out rows where none are."""
    if chosen.schedule in BY_EVALUATION and not evaluate:
        what = f"{chosen.schedule} follows the held-out loss, but no row is held out"
        hint = "set data.eval_fraction, or choose another schedule"
        raise FasttuneError(what, "train.schedule", hint)
    try:
        if chosen.schedule in ("constant", "constant_with_warmup") and chosen.schedule_options:
            raise ValueError("it takes no options")  # transformers ignores them
        _schedule(chosen, warmup=1, steps=10)
    except (TypeError, ValueError) as error:
        raise FasttuneError(
            f"cannot create the schedule {chosen.schedule}: {reason(error)}",
            f"train.schedule_options: {chosen.schedule_options}",
            f"use the arguments of transformers' function for the schedule {chosen.schedule}",
        ) from error


def check_warmup(chosen: TrainConfig, steps: int) -> str:
    """Say how far the learning rate gets if all steps of a run are warm-up; "" if they are not. A
    rate of 0 in every step is refused."""
    key, value, warmup = "train.warmup_steps", float(chosen.warmup_steps), chosen.warmup_steps
    if chosen.warmup_ratio:
        key, value = "train.warmup_ratio", chosen.warmup_ratio
        warmup = math.ceil(steps * value)  # as transformers does
    if steps > warmup or chosen.schedule in ("constant", *BY_EVALUATION):
        return ""
    schedule = _schedule(chosen, warmup, steps)
    rates = schedule.get_last_lr()
    for _ in range(steps - 1):
        schedule.optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
    of = f"all {steps} steps are" if steps > 1 else "the only step is"
    if not max(rates):
        what = f"nothing would be learned: {of} warm-up, with a learning rate of 0"
        raise FasttuneError(what, f"{key}={value:g}", f"set {key}=0, or train in more steps")
    top = f"the learning rate gets to {max(rates):.2g} of {chosen.learning_rate:.2g}"
    return f"{of} warm-up ({key}={value:g}): {top}; lower it, or train in more steps"


def _schedule(chosen: TrainConfig, warmup: int, steps: int) -> Any:
    """The schedule as transformers makes it, on a weight that nothing trains."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=chosen.learning_rate)
    return get_scheduler(chosen.schedule, optimizer, warmup, steps, dict(chosen.schedule_options))


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)
