"""TRL's SFTTrainer on encoded rows: losses per section, exact evaluation, several processes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import SFTTrainer

from fasttune import processes
from fasttune.config import RunConfig
from fasttune.encoding.batches import Collator, section_names, trainer_dataset
from fasttune.encoding.cache import EncodedRows
from fasttune.encoding.encode import Encoded, batches
from fasttune.generation.generator import Generator
from fasttune.machine import tensor_device
from fasttune.models.fast.fast import check_packing, speed_up
from fasttune.models.head import SectionLoss, causal_lm, check_head, decoder, token_losses
from fasttune.models.unsloth import import_unsloth, settle_compilation
from fasttune.runs import Run
from fasttune.runs.resume import check_checkpoint
from fasttune.terminal import quiet
from fasttune.training.callbacks import Longer, Progress, SameFlags
from fasttune.training.checkpoints import (
    SealCheckpoints,
    checkpoint_of,
    drop_incomplete,
    load_adapter,
    loading,
    require_loadable,
)
from fasttune.training.settings import training_arguments
from fasttune.training.side_by_side import SideBySide, changes_with_length
from fasttune.training.trouble import FiniteSteps, Troubles, not_finite, out_of_memory, writing

log = logging.getLogger(__name__)

NOISE = ("==((====))==", "mtime may not be reliable on this filesystem")
"""Unsloth's banner on a GPU, and transformers about checkpoints less than a second apart."""
for name in ("transformers.trainer", "transformers.trainer_utils"):
    logging.getLogger(name).addFilter(
        lambda record: not any(words in record.getMessage() for words in NOISE)
    )


class Trainer(SFTTrainer):
    """SFTTrainer on encoded rows, with losses per section and an exact evaluation.

    It overrides public methods only. A batch of the data loader holds the places of the rows of an
    optimiser step; `_take_step` shows what happens to them. Losses are means over learned tokens.

    Args:
        generator: its model, with fresh adapters, is put into training mode and onto the fast path.
        run: where checkpoints and TensorBoard's files go; nothing is written yet.
        callbacks: one of them is a `Progress`, which counts the tokens.
    """

    def __init__(
        self,
        config: RunConfig,
        generator: Generator,
        train_rows: Sequence[Encoded],
        eval_rows: Sequence[Encoded],
        run: Run,
        callbacks: Sequence[TrainerCallback],
        troubles: Troubles = Troubles(),
    ) -> None:
        model, tokenizer, choices = generator.model, generator.tokenizer, generator.choices
        # Where transformers' TensorBoard callback writes; otherwise it takes ./runs, among our own.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "tensorboard")
        # Unsloth's words for with and without autocast. It would turn it on if a GPU has bf16.
        os.environ["UNSLOTH_MIXED_PRECISION"] = "float32" if choices.autocast else "bfloat16"
        import_unsloth().for_training(model)
        check_head(model)
        fast = speed_up(model, choices)
        if config.train.packing:
            check_packing(model, fast, choices)
        with quiet():
            super().__init__(
                model=model,
                args=training_arguments(config, run, bool(eval_rows), choices),
                train_dataset=trainer_dataset(train_rows),
                eval_dataset=trainer_dataset(eval_rows) if eval_rows else None,
                processing_class=tokenizer,
                data_collator=lambda items: [item["place"] for item in items],
                callbacks=list(callbacks),
            )
        self.remove_callback(PrinterCallback)
        for weight in self._weights():  # TRL casts those of a quantised model to bf16
            weight.data = weight.data.float()
        self.train_rows, self.eval_rows = train_rows, eval_rows
        self.fast, self.troubles, self.saved_tokens = fast, troubles, 0
        self.progress = next(each for each in callbacks if isinstance(each, Progress))
        self.collator = Collator(
            config.train.batch_size,
            config.model.max_length,
            packing=config.train.packing,
            share=fast.by_row,
            pad_id=tokenizer.pad_token_id,
            sections=list(dict.fromkeys([*_sections(train_rows), *_sections(eval_rows)])),
            side_by_side=choices.side_by_side,
        )
        self.section_loss = SectionLoss(self.collator.sections)
        self.finite = FiniteSteps(troubles, scaled=self.accelerator.scaler is not None)
        self._decoder = decoder(model)
        self._packs = SideBySide(1 if changes_with_length(model.config) else choices.side_by_side)
        # If a CPU's memory runs out, the system kills the process: there is nothing to try.
        self._longest = _longest(train_rows, config) if tensor_device() != "cpu" else ()
        # transformers deletes old checkpoints before the new one has its seal.
        self.args.save_total_limit = max(2, self.args.save_total_limit or 2)
        for callback in (self.finite, SameFlags(), SealCheckpoints()):  # after all others
            self.add_callback(callback)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from a checkpoint or from the first step. A checkpoint of the last step
        is only loaded."""
        folder = Path(self.args.output_dir)
        if checkpoint is not None:
            require_loadable(checkpoint, self.model)
            with loading(checkpoint):
                state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
                planned, ended = state.max_steps, self._ended(state)
            best = self.args.load_best_model_at_end and state.best_global_step
            if best:  # transformers would continue without a missing or damaged one
                hint = "restore it; or delete it and all later ones, and use --resume"
                check_checkpoint(checkpoint_of(self.args, best), hint)
            if ended:
                self.state = state
                if best:
                    load_adapter(checkpoint_of(self.args, best), self.model)
                return
            if state.max_steps != planned:
                self.add_callback(Longer(planned))
            drop_incomplete(folder)
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception:
            with writing(folder.parent, f"checkpoints/checkpoint-{self.state.global_step}"):
                raise
        finally:
            drop_incomplete(folder)

    def _ended(self, state: TrainerState) -> bool:
        """Whether no step is left: transformers would take one before it checks."""
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
        """Compute the gradients of the optimiser step of the rows at these places; return its mean
        loss."""
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
        """Take a step with the longest rows, and discard all of it but a smaller batch limit."""
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

        Each process divides its share of the rows into batches, which pass through the model, one
        after the other or side by side. If memory runs out, all are computed again in smaller ones.
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
        """This process's part of a step's rows: each process gets short and long ones."""
        if processes.count() == 1:
            return rows
        by_length = sorted(rows.items(), key=lambda item: -len(item[1]))
        return dict(by_length[processes.rank() :: processes.count()])

    def _batches(self, rows: dict[int, Encoded]) -> list[dict[str, Any]]:
        """The rows as packs or padded batches on the model's device, without waiting for a GPU."""
        batches = self.collator([*rows.values()])
        return [send_to_device(batch, self.args.device, non_blocking=True) for batch in batches]

    def _backward(
        self, learned: int, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, SectionLoss, Sequence[torch.Tensor | None]]:
        """The forward and backward pass of a batch of a step with so many learned tokens: its part
        of the loss, its losses by section, and gradients that are not yet added to the weights."""
        sections = SectionLoss(self.section_loss.names)
        with self.accelerator.autocast():
            loss = self._losses(batch, sections).sum() / learned
        if self._packs.threads == 1:
            self.accelerator.backward(loss)
            return loss.detach(), sections, ()
        # Several threads would add gradients to the weights in the order in which they end.
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
        """Discard the gradients, and halve the limit for all later batches; it is an error if each
        row has a batch to itself. An `except` block would keep the failed attempt in memory."""
        self.model.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        step = self.state.global_step + self.model.training
        if not self.collator.halve([*rows.values()]):
            places = [*rows] if self.model.training else []
            raise self.troubles.no_room(step, places, max(map(len, rows.values())))
        log.warning(
            "memory ran out at step %d: %s, of at most %d from here on; "
            "the rows of a step and its loss stay",
            step,
            "packs, in tokens" if self.collator.packing else "batches, in rows",
            self.collator.limit,
        )
        if self.troubles.run is not None:
            self.troubles.run.update({"batch_limit": self.collator.limit})

    def _sum_over_processes(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum the gradients of all processes into the weights, and return the sum of their losses:
        each process divided its loss by the learned tokens of all. DistributedDataParallel would
        take the mean; it only gives all processes the same initial adapters."""
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
        """Give each process all rows of a step, of which it takes its share. accelerate would fill
        up the last step of an epoch with rows from its beginning."""
        loader = super().get_train_dataloader()
        if isinstance(shard := loader.batch_sampler, BatchSamplerShard):
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    @torch.no_grad()
    def evaluate(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Compute the mean loss over all learned tokens of the held-out rows, and log it."""
        began = time.perf_counter()
        training = self.model.training
        self.model.eval()
        losses = SectionLoss(self.section_loss.names)
        for places in batches(range(len(self.eval_rows)), self.args.per_device_eval_batch_size):
            for sections in self._measure({place: self.eval_rows[place] for place in places}):
                losses.include(sections)
        self._sum_sections(losses)
        self.model.train(training)
        if not math.isfinite(losses.mean):
            means = ", ".join(f"{name} {mean:.4g}" for name, mean in losses.means().items())
            what = f"the held-out loss is {losses.mean} after step {self.state.global_step}"
            raise not_finite(what, means, trained=self.state.global_step > 0)
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
        """The losses of this process's share, in smaller batches if memory runs out."""
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


def _sections(rows: Sequence[Encoded]) -> list[str]:
    return rows.sections if isinstance(rows, EncodedRows) else section_names(rows)


def _longest(rows: Sequence[Encoded], config: RunConfig) -> Sequence[int]:
    """The places of the longest rows, as many as a step has: a run that needs too much memory shall
    fail in its first minute."""
    lengths = rows.lengths if isinstance(rows, EncodedRows) else [len(row) for row in rows]
    count = config.train.batch_size * config.train.gradient_accumulation
    return sorted(range(len(lengths)), key=lambda at: -lengths[at])[:count]
