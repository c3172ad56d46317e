"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation, an orderly Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from fasttune.models.backend import DEVICE  # before the libraries that Unsloth patches

# isort: split
import torch
from transformers import TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from fasttune.config import RunConfig
from fasttune.errors import FasttuneError
from fasttune.models.load import resolve_precision
from fasttune.models.sections import SectionLoss, decoder
from fasttune.progress import Progress
from fasttune.runs import Run

LOSS_TOLERANCE = 0.05
"""Relative difference between the backend's loss and the sum of the sections; bf16 makes 1 %."""


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are already encoded, with losses per section and an exact evaluation.

    Evaluation takes the token-weighted mean over all held-out rows and keeps no logits:
    transformers' own averages over batches, and holds the logits of a batch, which runs out of
    memory where training fits.
    """

    def __init__(
        self, *args: Any, sections: Sequence[str], progress: Progress, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section_loss = SectionLoss(self.model, sections)
        self.progress = progress
        self._checked = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        sections = inputs.pop("sections")
        labels = inputs["labels"]
        self.progress.tokens += _token_count(inputs)
        before = self.section_loss.total, self.section_loss.tokens
        with self.section_loss.watch(labels, sections):
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if not self._checked:
            self._checked = True
            items = float(num_items_in_batch or self.section_loss.tokens - before[1])
            self._check(float(result.detach()), (self.section_loss.total - before[0]) / items)
        return result

    def _check(self, loss: float, sections: float) -> None:
        """A model that treats its logits in a way `SectionLoss` does not know would give wrong
        figures."""
        if not math.isclose(loss, sections, rel_tol=LOSS_TOLERANCE, abs_tol=0.01):
            raise FasttuneError(
                f"the loss per section adds up to {sections:.4f}, the training loss is {loss:.4f}",
                f"model type '{self.model.config.model_type}'",
                "this architecture changes its logits in a way that is not supported",
            )

    @torch.no_grad()
    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        began = time.perf_counter()
        training = self.model.training
        self.model.eval()
        losses = SectionLoss(self.model, self.section_loss.names)
        backbone = decoder(self.model)
        for batch in self.get_eval_dataloader():
            batch = self._prepare_inputs(batch)
            labels, sections = batch.pop("labels"), batch.pop("sections")
            with self.compute_loss_context_manager(), losses.watch(labels, sections):
                backbone(**batch, use_cache=False)
        self.model.train(training)
        metrics = {
            f"{metric_key_prefix}_loss": losses.total / max(1, losses.tokens),
            **{f"{metric_key_prefix}_loss_{name}": mean for name, mean in losses.means().items()},
            f"{metric_key_prefix}_tokens": losses.tokens,
            f"{metric_key_prefix}_seconds": round(time.perf_counter() - began, 3),
        }
        self.log(metrics)
        handler = self.callback_handler
        self.control: TrainerControl = handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {f"loss_{name}": mean for name, mean in self.section_loss.means().items()}
            logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
            self.section_loss.reset()
        super().log(logs, start_time)


class RunLog(TrainerCallback):
    """Writes every logged step to the run's metrics."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
    ) -> None:
        if logs and ("loss" in logs or "eval_loss" in logs):
            self.run.log({"step": state.global_step, **logs})


class Interrupt(TrainerCallback):
    """Turns the first Ctrl-C into a checkpoint at the end of the step; a second one stops at
    once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)
        print("stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True


def _token_count(inputs: dict[str, torch.Tensor]) -> int:
    counted = inputs.get("attention_mask")
    return int(counted.sum()) if counted is not None else inputs["input_ids"].numel()


def training_arguments(config: RunConfig, run: Run, evaluate: bool) -> SFTConfig:
    """The settings of TRL's trainer."""
    chosen = config.train
    precision = resolve_precision(config.model)
    optimizer = "adamw_8bit" if DEVICE.type == "cuda" else "adamw_torch"
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
        output_dir=str(run.checkpoints),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.eval_batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        warmup_steps=chosen.warmup_steps,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        optim=optimizer if chosen.optimizer == "auto" else chosen.optimizer,
        gradient_checkpointing=bool(checkpointing_of(config)),
        logging_steps=chosen.log_steps,
        eval_strategy=eval_every[0],
        eval_steps=eval_every[1],
        save_strategy=save_every[0],
        save_steps=save_every[1],
        save_total_limit=chosen.save_total_limit,
        load_best_model_at_end=chosen.early_stopping is not None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to=list(chosen.report_to) or "none",
        run_name=run.name,
        seed=config.seed,
        bf16=precision.dtype == torch.bfloat16,
        fp16=precision.dtype == torch.float16,
        max_length=config.model.max_length,
        packing=False,  # our collator packs
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)


def checkpointing_of(config: RunConfig) -> str | bool:
    """Unsloth's offloaded checkpointing on CUDA; none on a CPU, where memory is not what is
    short."""
    auto = "unsloth" if DEVICE.type == "cuda" else "off"
    chosen = config.train.gradient_checkpointing
    word = auto if chosen == "auto" else chosen
    return {"on": True, "off": False}.get(word, word)
