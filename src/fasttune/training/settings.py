"""Turn a run's config into the settings of TRL's trainer."""

from __future__ import annotations

from trl import SFTConfig

from fasttune.config import RunConfig
from fasttune.errors import FasttuneError
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
        num_train_epochs=float(chosen.epochs),
        max_steps=chosen.max_steps or -1,
        # Each process receives the rows of the whole step and picks its share.
        per_device_train_batch_size=chosen.batch_size * chosen.gradient_accumulation,
        per_device_eval_batch_size=chosen.eval_batch_size * count(),
        use_cpu=count() > 1 and tensor_device() == "cpu",  # else accelerate looks for GPUs
        gradient_accumulation_steps=1,  # the collator divides a step's rows
        learning_rate=float(chosen.learning_rate),
        lr_scheduler_type=chosen.schedule,
        lr_scheduler_kwargs=dict(chosen.schedule_options) or None,
        # Below 1: a share of all steps.
        warmup_steps=chosen.warmup_ratio or int(chosen.warmup_steps),
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


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)
