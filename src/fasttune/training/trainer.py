"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerControl

from fasttune import processes
from fasttune.encoding.batches import Collator, trainer_dataset
from fasttune.encoding.encode import Encoded
from fasttune.models.fast.fast import FastPath
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.models.sections import SectionLoss
from fasttune.models.unsloth import settle_compilation
from fasttune.training.callbacks import Progress
from fasttune.training.checkpoints import CheckpointingTrainer
from fasttune.training.side_by_side import SideBySide
from fasttune.training.trouble import (
    Finite,
    Troubles,
    not_finite,
    out_of_memory,
    require_finite,
    writing,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

# On a GPU Unsloth has a banner of its own printed where training begins.
logging.getLogger("transformers.trainer").addFilter(
    lambda record: "==((====))==" not in record.getMessage()
)


class Trainer(CheckpointingTrainer):
    """SFTTrainer on rows that are already encoded, with losses per section and an exact evaluation.

    A batch of the data loader holds the places of the rows of a whole optimiser step. These rows
    are laid into packs (or padded batches) that fit into memory one after the other, or so many
    side by side; where memory runs out the step is taken anew in smaller ones. The loss is the mean
    over all trained tokens of the step. Evaluation takes the token-weighted mean over all held-out
    rows and keeps no logits: transformers' own averages over batches, and holds the logits of a
    batch, which runs out of memory where training fits.

    Before the first step the longest rows of all are taken as one, and what comes of it is thrown
    away: what runs out of memory does so in the first minute.

    A loss or a gradient that is not finite ends the training before the optimiser's step.

    Several processes divide the rows of each step and of the evaluation among them.
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
        self._decoder = decoder(self.model)
        self._places: list[int] = []
        self._loss = torch.zeros(())
        self._finite = Finite()
        self._longest = longest
        self._packs = SideBySide(side_by_side)

    def training_step(
        self, model: Any, inputs: list[int], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one optimiser step; returns its mean loss.

        Raises:
            FasttuneError: memory runs out with a row by itself.
        """
        settle_compilation()
        model.train()
        if self._longest:
            self._try_longest()
        self._places = inputs
        rows = {place: self.train_rows[place] for place in inputs}
        self._loss = self._forward_and_backward(rows)
        self.progress.tokens += sum(map(len, rows.values()))
        return self._loss

    def _try_longest(self) -> None:
        """Take the longest rows as a step that leaves nothing: no gradient, no figure, and random
        numbers as they were. Only the size of packs stays, where they had to be smaller."""
        rows = {place: self.train_rows[place] for place in self._longest}
        self._longest, saved = (), self.saved_tokens
        log.info("trying the longest %d rows first", len(rows))
        device = self.args.device
        with torch.random.fork_rng([device] if device.type != "cpu" else []):
            self._forward_and_backward(rows)
        self.model.zero_grad(set_to_none=True)
        self.section_loss.reset()
        self.saved_tokens = saved

    def _forward_and_backward(self, rows: dict[int, Encoded]) -> torch.Tensor:
        """The gradients of a step, and its mean loss.

        Args:
            rows: each with its place.
        """
        learned = max(1, sum(row.trained for row in rows.values()))
        weights = self._weights()

        def compute(batch: dict[str, Any]) -> tuple[Any, ...]:
            parts = SectionLoss(self.section_loss.names)
            with self.accelerator.autocast():
                loss = self._losses(batch, parts).sum() / learned
            gradients: Sequence[torch.Tensor | None] = ()
            if self._packs.threads == 1:
                self.accelerator.backward(loss)
            else:  # backward() would add them up in the order in which the threads happen to come
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            return loss.detach(), parts, gradients

        def attempt(batches: list[dict[str, Any]]) -> torch.Tensor:
            total = torch.zeros((), device=self.args.device)
            all_parts = SectionLoss(self.section_loss.names)
            for loss, parts, gradients in self._packs.map(compute, batches):
                total += loss
                all_parts.include(parts)
                for weight, found in zip(weights, gradients, strict=False):
                    if found is not None:
                        weight.grad = found if weight.grad is None else weight.grad + found
            self.section_loss.include(all_parts)
            layouts = [batch["row_layout"] for batch in batches if "row_layout" in batch]
            self.saved_tokens += sum(layout.saved for layout in layouts)
            return total

        loss = self._within_memory(self._share(rows), attempt)
        return self._add_up(loss) if processes.count() > 1 else loss

    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _share(self, rows: dict[int, Encoded]) -> dict[int, Encoded]:
        """This process's rows of a step. Those of like length are dealt out one to each, so that
        none waits long for the others."""
        if processes.count() == 1:
            return rows
        by_length = sorted(rows.items(), key=lambda item: -len(item[1]))
        return dict(by_length[processes.rank() :: processes.count()])

    def _add_up(self, loss: torch.Tensor) -> torch.Tensor:
        """Put the sum of all processes' gradients into the parameters; the sum of their losses.

        A step's loss is divided by the learned tokens of all processes' rows, so that the sum is
        exactly the gradient that one process would have. DistributedDataParallel would take the
        mean; but its hooks are armed by its own forward pass, which a step does not go through, as
        it needs the decoder's states and no logits; and a process may have several packs in a step,
        or none. What it does is to give all of them the first one's adapters to begin with.
        """
        weights = self._weights()
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        flat = [*(weight.grad.flatten() for weight in weights), loss.view(1)]
        *sums, total = processes.add_up(torch.cat(flat)).split([part.numel() for part in flat])
        for weight, found in zip(weights, sums, strict=True):
            weight.grad.copy_(found.view_as(weight.grad))
        return total[0]

    def _of_all(self, losses: SectionLoss) -> None:
        """Replace sums and counts by those over all processes."""
        losses.sums = processes.add_up(losses.sums.to(self.args.device))
        losses.counts = processes.add_up(losses.counts.to(self.args.device))

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """A loader that gives each process all rows of a step: `_share` divides them, so that a
        step has the same rows however many processes there are, the last one of an epoch too.
        accelerate would fill that up with rows of the beginning."""
        loader = super()._get_dataloader(*args, **kwargs)
        if isinstance(shard := loader.batch_sampler, BatchSamplerShard):
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What one process wants to do, all do: a signal may reach one of them, and their clocks
        differ."""
        wishes = [name for name in vars(self.control) if name.startswith("should_")]
        for name, wanted in zip(
            wishes, processes.any_of([getattr(self.control, name) for name in wishes]), strict=True
        ):
            setattr(self.control, name, wanted)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _within_memory(
        self, rows: dict[int, Encoded], attempt: Callable[[list[dict[str, Any]]], T]
    ) -> T:
        """What `attempt` makes of the rows' batches. Where memory runs out its gradients are
        dropped, and it has smaller batches, as have all later ones.

        Raises:
            FasttuneError: each row has a batch by itself, and one does not fit.
        """
        encoded = [*rows.values()]
        while True:
            try:
                return attempt([self._on_device(batch) for batch in self.collator(encoded)])
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Out here nothing holds the failed attempt any more: its error did, by its traceback.
            self.model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            step = self.state.global_step + self.model.training
            if not self.collator.halve(encoded):
                places = [*rows] if self.model.training else []
                raise self.troubles.no_room(step, places, max(map(len, encoded)))
            what = "packs, in tokens," if self.collator.packing else "batches, in rows,"
            log.warning(self.troubles.smaller(step, self.collator.limit, what))

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The tensors where the model is; a GPU is not waited for."""
        return {
            name: value.to(self.args.device, non_blocking=True)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in batch.items()
        }

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """The norm of the gradients before they are clipped, with a look at whether it and the loss
        are finite: the one time in a step that a GPU is waited for.

        Raises:
            FasttuneError: one is not.
        """
        norm: torch.Tensor = super()._clip_grad_norm(model)
        loss, size = torch.stack([self._loss.double(), norm.double()]).tolist()
        if problem := self._finite.problem(loss, size, self.accelerator.scaler is not None):
            where = self.troubles.named(self._places)
            raise not_finite(f"step {self.state.global_step + 1}: {problem}", where)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        require_finite(self.model, f"after step {step}")
        with writing(Path(self.args.output_dir).parent, f"checkpoints/checkpoint-{step}"):
            super()._save_checkpoint(model, trial)

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

        def measure(batch: dict[str, Any]) -> SectionLoss:
            parts = SectionLoss(losses.names)
            with torch.no_grad(), self.accelerator.autocast():
                self._losses(batch, parts)
            return parts

        def attempt(batches: list[dict[str, Any]]) -> None:
            for parts in [*self._packs.map(measure, batches)]:
                losses.include(parts)

        for places in self.get_eval_dataloader():
            rows = {place: self.eval_rows[place] for place in places}
            self._within_memory(self._share(rows), attempt)
        self._of_all(losses)
        self.model.train(training)
        if not math.isfinite(losses.mean):
            sections = ", ".join(f"{name} {mean:.4g}" for name, mean in losses.means().items())
            step = self.state.global_step
            what = f"the held-out loss is {losses.mean} after step {step}"
            raise not_finite(what, sections, trained=step > 0)
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
            self._of_all(self.section_loss)
            logs |= {f"loss_{name}": mean for name, mean in self.section_loss.means().items()}
            logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
            self.section_loss.reset()
        super().log(logs, start_time)


def _places(batch: Sequence[dict[str, int]]) -> list[int]:
    """The places of a batch's rows, from the items of a `trainer_dataset`."""
    return [item["place"] for item in batch]
