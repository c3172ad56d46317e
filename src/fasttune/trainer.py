"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation, an orderly Ctrl-C."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from fasttune.models.unsloth import settle_compilation  # before the libraries that it patches

# isort: split
import torch
from transformers import TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from fasttune.config import RunConfig
from fasttune.errors import FasttuneError
from fasttune.models.choices import Choices
from fasttune.models.fast.fast import FastPath
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.models.sections import SectionLoss
from fasttune.progress import Progress
from fasttune.runs import Run

# On a GPU Unsloth has a banner of its own printed where training begins.
logging.getLogger("transformers.trainer").addFilter(
    lambda record: "==((====))==" not in record.getMessage()
)


class Trainer(SFTTrainer):
    """SFTTrainer on rows that are already encoded, with losses per section and an exact evaluation.

    A batch of the data loader holds the rows of a whole optimiser step, as a list of packs (or
    padded batches) that fit into memory one after the other. The loss is the mean over all trained
    tokens of the step. Evaluation takes the token-weighted mean over all held-out rows and keeps no
    logits: transformers' own averages over batches, and holds the logits of a batch, which runs out
    of memory where training fits.
    """

    def __init__(
        self,
        *args: Any,
        sections: Sequence[str],
        progress: Progress,
        fast: FastPath,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section_loss = SectionLoss(sections)
        self.progress = progress
        self.fast = fast
        self.saved_tokens = 0
        self._decoder = decoder(self.model)

    def training_step(
        self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one optimiser step; returns its mean loss."""
        settle_compilation()
        model.train()
        batches = self._prepare_inputs(inputs)
        learned = max(1, sum(len(batch["targets"]) for batch in batches))
        total = torch.zeros((), device=self.args.device)
        for batch in batches:
            self.progress.tokens += batch["tokens"]
            if layout := batch.get("row_layout"):
                self.saved_tokens += layout.saved
            with self.accelerator.autocast():
                loss = self._losses(batch, self.section_loss).sum() / learned
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _losses(self, batch: dict[str, Any], into: SectionLoss) -> torch.Tensor:
        """The loss of each trained token of a batch, [learned], noted per section."""
        names = ("input_ids", "position_ids", "attention_mask")
        inputs = {name: batch[name] for name in names if name in batch}
        if self.fast.by_row and "row_layout" in batch:
            inputs["row_layout"] = batch["row_layout"]
            # transformers makes no mask of its own where it is given one in 4D; none is read.
            inputs["attention_mask"] = torch.empty(1, 1, 1, 1)
        hidden = self._decoder(**inputs, use_cache=False).last_hidden_state
        losses = token_losses(causal_lm(self.model), hidden, batch["places"], batch["targets"])
        into.add(losses, batch["owners"])
        return losses

    @torch.no_grad()
    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        began = time.perf_counter()
        training = self.model.training
        self.model.eval()
        losses = SectionLoss(self.section_loss.names)
        for batches in self.get_eval_dataloader():
            for batch in self._prepare_inputs(batches):
                with self.accelerator.autocast():
                    self._losses(batch, losses)
        self.model.train(training)
        metrics = {
            f"{metric_key_prefix}_loss": losses.mean,
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


def training_arguments(config: RunConfig, run: Run, evaluate: bool, choices: Choices) -> SFTConfig:
    """The settings of TRL's trainer."""
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
        output_dir=str(run.checkpoints),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size * chosen.gradient_accumulation,
        per_device_eval_batch_size=chosen.eval_batch_size,
        gradient_accumulation_steps=1,  # the collator divides a step's rows
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        warmup_steps=chosen.warmup_steps,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        optim=choices.optimizer,
        gradient_checkpointing=choices.checkpointing != "off",
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
        bf16=choices.mixed_precision == "bf16",
        fp16=choices.mixed_precision == "fp16",
        max_length=config.model.max_length,
        packing=False,  # our collator packs
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)
