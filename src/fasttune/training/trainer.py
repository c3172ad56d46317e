"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerControl

from fasttune.models.fast.fast import FastPath
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.models.sections import SectionLoss
from fasttune.models.unsloth import settle_compilation
from fasttune.training.callbacks import Progress
from fasttune.training.checkpoints import CheckpointingTrainer

# On a GPU Unsloth has a banner of its own printed where training begins.
logging.getLogger("transformers.trainer").addFilter(
    lambda record: "==((====))==" not in record.getMessage()
)


class Trainer(CheckpointingTrainer):
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
        inputs |= self.fast.row_inputs(batch.get("row_layout"))
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
