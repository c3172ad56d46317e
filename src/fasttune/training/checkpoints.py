"""Checkpoints that are whole or absent, and going on from one as if nothing had happened."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from fasttune import processes
from fasttune.errors import FasttuneError
from fasttune.files import named, replace_folder, seal, sync
from fasttune.models.tokenizer import cannot_load
from fasttune.runs import check_checkpoint


class CheckpointingTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints are written aside, synced, sealed, and only then named."""

    _aside: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._aside or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints = Path(self.args.output_dir)
        checkpoints.mkdir(parents=True, exist_ok=True)
        target = self._checkpoint(self.state.global_step)
        log = checkpoints.with_name("metrics.jsonl")
        if log.exists() and processes.first():
            sync(log)  # a checkpoint must not outlive the lines of its steps
        with _made_aside(checkpoints, target) as made:
            self._aside = processes.share(made)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._aside = None
            best = self.state.best_global_step == self.state.global_step
            if best:
                self.state.best_model_checkpoint = str(target)  # not where it was written
            processes.wait()  # the others write their random states
            if processes.first():
                new = Path(made) / target.name
                if best:
                    self.state.save_to_json(str(new / "trainer_state.json"))
                seal(new)
                replace_folder(new, target)
        if processes.first():
            kept = self.state.best_model_checkpoint
            rotate_checkpoints(str(checkpoints), self.args.save_total_limit, kept)
        processes.wait()

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        trained: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        if self.state.best_global_step and self.args.load_best_model_at_end:
            # The folder may have moved, and transformers would go on without it.
            best = self._checkpoint(self.state.best_global_step)
            try:
                check_checkpoint(best)
            except FasttuneError as error:
                raise FasttuneError(
                    f"the best checkpoint so far cannot be used: {error.message}",
                    error.where,
                    "restore it; or delete all checkpoints from this one on, and --resume takes "
                    "their steps again",
                ) from error
            self.state.best_model_checkpoint = str(best)
        return trained

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        with _going_on(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _going_on(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _going_on(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _going_on(checkpoint):
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch, unless the checkpoint is that of the end: transformers looks whether it is
        there only after another step."""
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _checkpoint(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{step}"


@contextmanager
def _made_aside(checkpoints: Path, target: Path) -> Iterator[str]:
    """A temporary folder, made and removed by the first process alone; "" in the others.

    Args:
        target: what becomes of the folder of its name in there.
    """
    if not processes.first():
        yield ""
        return
    with (
        tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=checkpoints) as aside,
        named(Path(aside) / target.name, target),
    ):
        yield aside


@contextmanager
def _going_on(checkpoint: str | None) -> Iterator[None]:
    """Put into words what libraries say of a checkpoint without a seal that is damaged, or whose
    pickles hold more than tensors."""
    try:
        yield
    except Exception as error:
        found = cannot_load(str(checkpoint), error)
        raise FasttuneError(
            f"the run cannot go on from {Path(str(checkpoint)).name}",
            f"{checkpoint}: {found.where}",
            "restore it; or delete it, and --resume takes the one before",
        ) from error


class SaveByTime(TrainerCallback):
    """A checkpoint at the end of the step when the last one is so many minutes old."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._saved >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
