"""A run's config as the settings of TRL's trainer."""

from __future__ import annotations

from trl import SFTConfig

from fasttune.config import RunConfig, TrainConfig
from fasttune.errors import FasttuneError, reason
from fasttune.machine import tensor_device
from fasttune.models.choices import Choices
from fasttune.processes import count
from fasttune.runs import Run


def training_arguments(
    config: RunConfig, run: Run, evaluate: bool, choices: Choices, processes: int = 1
) -> SFTConfig:
    """The settings of TRL's trainer.

    Args:
        processes: how many the run began with; each adds as many rows to a step.
    """
    chosen = config.train
    eval_every = _every(chosen.eval_steps) if evaluate else ("no", 1)
    save_every = _every(chosen.save_steps)
    if chosen.early_stopping is not None:
        if not evaluate:
            raise FasttuneError(
                "early stopping needs held-out rows",
                "train.early_stopping",
                "set data.eval_fraction",
            )
        save_every = (
            eval_every  # transformers keeps the best model only where it saves and evaluates alike
        )
    return SFTConfig(
        output_dir=str(run.checkpoints.absolute()),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        # Each process is given the rows of the whole step, and takes its share of them.
        per_device_train_batch_size=chosen.batch_size * chosen.gradient_accumulation * processes,
        per_device_eval_batch_size=chosen.eval_batch_size * count(),
        use_cpu=count() > 1 and tensor_device() == "cpu",  # accelerate looks for GPUs otherwise
        gradient_accumulation_steps=1,  # the collator divides a step's rows
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        lr_scheduler_kwargs=dict(chosen.schedule_options) or None,
        warmup_steps=chosen.warmup_ratio or chosen.warmup_steps,  # below 1 it is a share
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
        # How many evaluations brought nothing: a resumed run stops where an unbroken one does.
        restore_callback_states_from_checkpoint=chosen.early_stopping is not None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
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
        dataloader_pin_memory=False,  # what is loaded are numbers, no tensors yet
        logging_nan_inf_filter=False,  # the trainer looks itself, with one wait for a GPU
        dataloader_num_workers=0,
    )


BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the held-out loss."""


def check_schedule(chosen: TrainConfig, evaluate: bool) -> None:
    """Refuse a schedule that transformers could not make of its options, before a model is loaded.

    Raises:
        FasttuneError: it lacks an option, has one that it does not know, or has no evaluations.
    """
    import torch
    from transformers import get_scheduler

    if chosen.schedule in BY_EVALUATION and not evaluate:
        raise FasttuneError(
            f"{chosen.schedule} follows the held-out loss, and no row is held out",
            "train.schedule",
            "set data.eval_fraction, or take another schedule",
        )
    if chosen.schedule in ("constant", "constant_with_warmup") and chosen.schedule_options:
        raise FasttuneError(  # transformers would not look at them
            f"the schedule {chosen.schedule} cannot be made: it takes no options",
            f"train.schedule_options: {chosen.schedule_options}",
            "leave them out",
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=chosen.learning_rate)
    try:
        get_scheduler(
            chosen.schedule,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(chosen.schedule_options),
        )
    except (TypeError, ValueError) as error:
        raise FasttuneError(
            f"the schedule {chosen.schedule} cannot be made: {reason(error)}",
            f"train.schedule_options: {chosen.schedule_options}",
            "its options are the arguments of transformers' get_..._schedule functions",
        ) from error


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)
