"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation, several processes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils.memory import clear_device_cache
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from trl import SFTTrainer

from fasttune import processes
from fasttune.encoding.batches import Collator, trainer_dataset
from fasttune.encoding.encode import Encoded
from fasttune.models.fast.fast import FastPath
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.models.sections import SectionLoss
from fasttune.models.unsloth import settle_compilation
from fasttune.training.callbacks import Progress, SameFlags
from fasttune.training.checkpoints import (
    SealCheckpoints,
    best_checkpoint,
    drop_incomplete,
    load_adapter,
    require_loadable,
)
from fasttune.training.side_by_side import SideBySide
from fasttune.training.trouble import Finite, Troubles, not_finite, out_of_memory, writing

log = logging.getLogger(__name__)

NOISE = ("==((====))==", "mtime may not be reliable on this filesystem")
"""Unsloth's banner on a GPU, and transformers about checkpoints less than a second apart."""
for name in ("transformers.trainer", "transformers.trainer_utils"):
    logging.getLogger(name).addFilter(
        lambda record: not any(words in record.getMessage() for words in NOISE)
    )


class Trainer(SFTTrainer):
    """SFTTrainer on encoded rows, with losses per section and an exact evaluation.

    It overrides public methods only; the rest is in the callbacks `Finite`, `SameFlags` and
    `SealCheckpoints`. A batch of the data loader holds the places of the rows of a whole optimiser
    step; `_take_step` shows what happens to them. Losses are means over learned tokens.
    transformers' own evaluation takes the mean of batches, and its logits need more memory than
    training.

    Args:
        longest: the places of rows to try before the first step, so that a run that needs too much
            memory fails in its first minute.
        side_by_side: how many packs are computed at the same time.
    """

    def __init__(
        self,
        *args: Any,
        train_rows: Sequence[Encoded],
        eval_rows: Sequence[Encoded] = (),
        collator: Collator,
        progress: Progress,
        fast: FastPath,
        troubles: Troubles | None = None,
        longest: Sequence[int] = (),
        side_by_side: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            train_dataset=trainer_dataset(train_rows),
            eval_dataset=trainer_dataset(eval_rows) if eval_rows else None,
            data_collator=_places,
            **kwargs,
        )
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.collator = collator
        self.troubles = troubles or Troubles()
        self.section_loss = SectionLoss(collator.sections)
        self.progress = progress
        self.fast = fast
        self.saved_tokens = 0
        self.finite = Finite(self.troubles, scaled=self.accelerator.scaler is not None)
        self._decoder = decoder(self.model)
        self._longest = longest
        self._packs = SideBySide(side_by_side)
        # transformers deletes old checkpoints before the new one has its seal.
        self.args.save_total_limit = max(2, self.args.save_total_limit or 2)
        for callback in (self.finite, SameFlags(), SealCheckpoints()):  # after all others
            self.add_callback(callback)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint or from the first step.

        If the checkpoint is that of the last step, only load it.
        """
        folder = Path(self.args.output_dir)
        if checkpoint is not None:
            require_loadable(checkpoint, self.model)
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            best = best_checkpoint(folder, state) if self.args.load_best_model_at_end else None
            if self._ended(state):
                self.state = state
                if best is not None:
                    load_adapter(best, self.model)
                return
            drop_incomplete(folder)
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception:
            name = f"checkpoints/checkpoint-{self.state.global_step}"
            with writing(folder.parent, name):
                raise
        finally:
            drop_incomplete(folder)

    def _ended(self, state: TrainerState) -> bool:
        """Whether a run in this state takes no more steps. transformers would take another one
        before it checks."""
        epochs, *_, steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        state.init_training_references(self, steps, epochs, None)
        if state.global_step >= steps:
            return True
        stored = state.stateful_callbacks.get("EarlyStoppingCallback")
        if stored is None or not self.args.load_best_model_at_end:
            return False
        stopping = EarlyStoppingCallback.from_state(stored)
        return bool(stopping.early_stopping_patience_counter >= stopping.early_stopping_patience)

    def training_step(
        self, model: Any, inputs: list[int], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradients of one optimiser step and return its mean loss.

        Args:
            inputs: the places of the step's rows.
        """
        settle_compilation()
        model.train()
        if self._longest:
            self._try_longest()
        rows = {place: self.train_rows[place] for place in inputs}
        loss = self._take_step(rows)
        gradients = [weight.grad for weight in self._weights() if weight.grad is not None]
        self.finite.note(loss, torch.nn.utils.get_total_norm(gradients), inputs)
        self.progress.tokens += sum(map(len, rows.values()))
        return loss

    def _try_longest(self) -> None:
        """Take a step with the longest rows and discard it: gradients, losses and random state stay
        as they were. A smaller batch limit is kept."""
        rows = {place: self.train_rows[place] for place in self._longest}
        self._longest, saved = (), self.saved_tokens
        log.info("trying the longest %d rows first", len(rows))
        device = self.args.device
        with torch.random.fork_rng([device] if device.type != "cpu" else []):
            self._take_step(rows)
        self.model.zero_grad(set_to_none=True)
        self.section_loss.reset()
        self.saved_tokens = saved

    def _take_step(self, rows: dict[int, Encoded]) -> torch.Tensor:
        """Compute the gradients of a step and return its mean loss.

        Each process takes its share of the rows and divides it into batches. The batches pass
        through the model, forward and backward, one after the other or side by side. If memory
        runs out, all of them are computed again in smaller batches. Finally losses and gradients
        are summed over the processes.
        """
        learned = max(1, sum(row.trained for row in rows.values()))  # of all processes
        share = self._share(rows)
        while True:
            batches = self._batches(share)
            loss = torch.zeros((), device=self.args.device)
            sections = SectionLoss(self.section_loss.names)
            try:
                parts = self._packs.map(partial(self._backward, learned), batches)
                for part, part_sections, gradients in parts:
                    loss += part
                    sections.include(part_sections)
                    for weight, gradient in zip(self._weights(), gradients, strict=False):
                        if gradient is not None:
                            so_far = weight.grad
                            weight.grad = gradient if so_far is None else so_far + gradient
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._shrink_batches(share)
        self.section_loss.include(sections)
        layouts = [batch["row_layout"] for batch in batches if "row_layout" in batch]
        self.saved_tokens += sum(layout.saved for layout in layouts)
        return self._sum_over_processes(loss) if processes.count() > 1 else loss

    def _share(self, rows: dict[int, Encoded]) -> dict[int, Encoded]:
        """This process's part of a step's rows. Rows are dealt out by length, so that all processes
        take about equally long."""
        if processes.count() == 1:
            return rows
        by_length = sorted(rows.items(), key=lambda item: -len(item[1]))
        return dict(by_length[processes.rank() :: processes.count()])

    def _batches(self, rows: dict[int, Encoded]) -> list[dict[str, Any]]:
        """The rows as packs or padded batches on the model's device, without waiting for a GPU."""
        return [
            {
                name: value.to(self.args.device, non_blocking=True)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in batch.items()
            }
            for batch in self.collator([*rows.values()])
        ]

    def _backward(
        self, learned: int, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, SectionLoss, Sequence[torch.Tensor | None]]:
        """The forward and backward pass of a batch of a step with so many learned tokens.

        Returns:
            the batch's part of the step's loss, its losses by section, and the gradients. A single
            thread adds them to the weights instead; several would do so in the order they end.
        """
        sections = SectionLoss(self.section_loss.names)
        with self.accelerator.autocast():
            loss = self._losses(batch, sections).sum() / learned
        gradients: Sequence[torch.Tensor | None] = ()
        if self._packs.threads == 1:
            self.accelerator.backward(loss)
        else:
            gradients = torch.autograd.grad(loss, self._weights(), allow_unused=True)
        return loss.detach(), sections, gradients

    def _losses(self, batch: dict[str, Any], into: SectionLoss) -> torch.Tensor:
        """The loss of each learned token of a batch, [learned], also added to `into`."""
        names = ("input_ids", "position_ids", "attention_mask")
        inputs = {name: batch[name] for name in names if name in batch}
        inputs |= self.fast.row_inputs(batch.get("row_layout"))
        hidden = self._decoder(**inputs, use_cache=False).last_hidden_state
        losses = token_losses(causal_lm(self.model), hidden, batch["places"], batch["targets"])
        into.add(losses, batch["owners"])
        return losses

    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _shrink_batches(self, rows: dict[int, Encoded]) -> None:
        """Memory ran out: discard the gradients and halve the limit for all later batches.

        The caller must have left its `except` block, which keeps the failed attempt in memory. If
        each of the rows already has a batch to itself, this is an error.
        """
        self.model.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        step = self.state.global_step + self.model.training
        if not self.collator.halve([*rows.values()]):
            places = [*rows] if self.model.training else []
            raise self.troubles.no_room(step, places, max(map(len, rows.values())))
        what = "packs, in tokens," if self.collator.packing else "batches, in rows,"
        log.warning(
            "memory ran out at step %d: %s of at most %d from here on; "
            "the rows of a step and its loss stay",
            *(step, what, self.collator.limit),
        )
        if self.troubles.run is not None:
            self.troubles.run.update({"batch_limit": self.collator.limit})

    def _sum_over_processes(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum the gradients of all processes into the weights, and return the sum of their losses.

        Each process divides its loss by the learned tokens of all processes, so the sum is exactly
        the gradient of a single process. DistributedDataParallel cannot do this: it takes the mean,
        its hooks need its own forward pass, and a process may have several packs in a step, or
        none. It is only used to give all processes the same initial adapters.
        """
        weights = self._weights()
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        flat = [*(weight.grad.flatten() for weight in weights), loss.view(1)]
        *sums, total = processes.add_up(torch.cat(flat)).split([part.numel() for part in flat])
        for weight, gradient in zip(weights, sums, strict=True):
            weight.grad.copy_(gradient.view_as(weight.grad))
        return total[0]

    def _sum_sections(self, losses: SectionLoss) -> None:
        """Replace sums and counts by those over all processes."""
        losses.sums = processes.add_up(losses.sums.to(self.args.device))
        losses.counts = processes.add_up(losses.counts.to(self.args.device))

    def get_train_dataloader(self) -> Any:
        return _undivided(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return _undivided(super().get_eval_dataloader(eval_dataset))

    @torch.no_grad()
    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Compute the mean loss over all learned tokens of the held-out rows, and log it."""
        began = time.perf_counter()
        training = self.model.training
        self.model.eval()
        losses = SectionLoss(self.section_loss.names)
        for places in self.get_eval_dataloader():
            for sections in self._measure({place: self.eval_rows[place] for place in places}):
                losses.include(sections)
        self._sum_sections(losses)
        self.model.train(training)
        if not math.isfinite(losses.mean):
            means = ", ".join(f"{name} {mean:.4g}" for name, mean in losses.means().items())
            step = self.state.global_step
            what = f"the held-out loss is {losses.mean} after step {step}"
            raise not_finite(what, means, trained=step > 0)
        metrics = {
            f"{metric_key_prefix}_loss": losses.mean,
            **{f"{metric_key_prefix}_loss_{name}": mean for name, mean in losses.means().items()},
            f"{metric_key_prefix}_tokens": losses.tokens,
            f"{metric_key_prefix}_seconds": round(time.perf_counter() - began, 3),
        }
        self.log(metrics)
        on_evaluate = self.callback_handler.on_evaluate
        self.control: TrainerControl = on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self, rows: dict[int, Encoded]) -> list[SectionLoss]:
        """The losses of each batch of this process's share, in smaller batches if memory runs
        out."""
        share = self._share(rows)
        while True:
            try:
                return [*self._packs.map(self._forward, self._batches(share))]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._shrink_batches(share)

    def _forward(self, batch: dict[str, Any]) -> SectionLoss:
        sections = SectionLoss(self.section_loss.names)
        with torch.no_grad(), self.accelerator.autocast():  # a thread has its own modes
            self._losses(batch, sections)
        return sections

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._sum_sections(self.section_loss)
            logs |= {f"loss_{name}": mean for name, mean in self.section_loss.means().items()}
            logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
            self.section_loss.reset()
        super().log(logs, start_time)


def _places(batch: Sequence[dict[str, int]]) -> list[int]:
    """The places of a batch's rows, from the items of a `trainer_dataset`."""
    return [item["place"] for item in batch]


def _undivided(loader: Any) -> Any:
    """A data loader that gives each process all rows of a step, of which it takes its share.

    A step then has the same rows for any number of processes. accelerate would fill up the last
    step of an epoch with rows from its beginning.
    """
    if isinstance(shard := loader.batch_sampler, BatchSamplerShard):
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    return loader
