"""Checkpoints: complete once they have a seal, and checked before a run resumes from one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from fasttune import processes
from fasttune.errors import FasttuneError
from fasttune.files import SEAL, seal, sync
from fasttune.models.tokenizer import cannot_load
from fasttune.training.trouble import require_finite


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint that transformers has written. It must be the last callback: others ask
    for checkpoints."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step and args.load_best_model_at_end:  # the folder may have moved
            state.best_model_checkpoint = str(checkpoint_of(args, state.best_global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if not control.should_save:
            return
        require_finite(model, f"after step {state.global_step}")
        if processes.first():
            (checkpoint_of(args, state.global_step) / SEAL).unlink(missing_ok=True)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if (checkpoint_of(args, state.global_step) / SEAL).exists() and not control.should_evaluate:
            control.should_save = False  # nothing has changed since the end of the step
        self.on_step_end(args, state, control, model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        processes.wait()  # the others write their random states
        if processes.first():
            checkpoint = checkpoint_of(args, state.global_step)
            metrics = checkpoint.parent.with_name("metrics.jsonl")
            if metrics.exists():
                sync(metrics)  # a checkpoint must not outlive the lines of its steps
            seal(checkpoint)
            sync(checkpoint.parent)
        processes.wait()


class SaveByTime(TrainerCallback):
    """Asks for a checkpoint at the end of a step if the last one is so many minutes old."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._saved >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()


def require_loadable(checkpoint: Path, model: Any) -> None:
    """Load a checkpoint's files, and its adapter into the model. One that is damaged, does not fit
    the model, or is a pickle of more than tensors is refused."""
    with loading(checkpoint), safe_globals():
        for file in sorted(checkpoint.glob("*.pt*")):
            torch.load(file, map_location="cpu", weights_only=True)
        load_adapter(checkpoint, model)


@contextmanager
def loading(checkpoint: Path) -> Iterator[None]:
    """Turn what libraries raise for a checkpoint that they cannot load into one error."""
    try:
        yield
    except Exception as error:
        raise FasttuneError(
            f"cannot resume from {checkpoint.name}",
            f"{checkpoint}: {cannot_load(str(checkpoint), error).where}",
            "restore it; or delete it, and --resume takes the one before",
        ) from error


def load_adapter(checkpoint: Path, model: Any) -> None:
    model.load_adapter(str(checkpoint), model.active_adapters[0], is_trainable=True)


def drop_incomplete(checkpoints: Path) -> None:
    """Delete the checkpoints that a kill or a full disk left without a seal or some of their files:
    transformers would count them among those to keep."""
    for checkpoint in checkpoints.glob("checkpoint-*") if processes.first() else ():
        try:
            lines = (checkpoint / SEAL).read_text(encoding="utf-8").splitlines()
            complete = all((checkpoint / line.partition("  ")[2]).is_file() for line in lines)
        except (OSError, UnicodeDecodeError):
            complete = False
        if not complete:
            shutil.rmtree(checkpoint, ignore_errors=True)


def checkpoint_of(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"
