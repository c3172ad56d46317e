"""Callbacks: progress, the run's log, an orderly Ctrl-C."""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from fasttune.processes import any_of, count
from fasttune.runs import Run
from fasttune.terminal import log_console
from fasttune.training.trouble import writing

log = logging.getLogger(__name__)


class Progress(TrainerCallback):
    """Shows step, loss, tokens per second and time left: in a terminal as a live line, elsewhere as
    about twenty logged lines. Padding, evaluating and saving do not count."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._bar: Any = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first = state.global_step
        if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
            return
        from rich import progress

        columns = (progress.BarColumn(), progress.MofNCompleteColumn())
        note = progress.TextColumn("{task.fields[note]}")
        self._bar = progress.Progress("training", *columns, note, console=log_console())
        self._bar.start()
        self._task = self._bar.add_task(
            "", total=state.max_steps, completed=state.global_step, note=""
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self._step_began
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            log.info("step %d: held-out loss %.4f", state.global_step, logs["eval_loss"])
        elif "loss" in logs:
            # From the steps alone: an evaluation in between would make the time left jump.
            done = max(1, state.global_step - self._first)
            left = self.seconds / done * (state.max_steps - state.global_step)
            minutes, seconds = divmod(round(left), 60)
            note = (
                f"loss {logs['loss']:.4f}  {self.tokens_per_second:.0f} tokens/s  "
                f"{minutes}:{seconds:02d} left"
            )
            step, last = state.global_step, state.max_steps
            if self._bar is not None:
                self._bar.update(self._task, note=note)
            elif step in (1, last) or step % max(1, last // 20) == 0:
                log.info("step %d/%d  %s", step, last, note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.__exit__()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class RunLog(TrainerCallback):
    """Writes every logged step to the run's metrics."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" in logs or "eval_loss" in logs:
            with writing(self.run.folder, "metrics.jsonl"):
                self.run.log({"step": state.global_step, **logs})


class Interrupt(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a checkpoint at the end of the step; a second one
    stops at once, unless there are several processes: their launcher sends a second one itself."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._previous = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if count() == 1:
            self.__exit__()
            log.warning("stopping after this step; Ctrl-C again stops at once")
        elif not self.asked:
            log.warning("all processes stop after this step")
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True


class Longer(TrainerCallback):
    """Lets a run continue beyond its planned steps with the learning rate that a run of the new
    length has at this step: the checkpoint holds the rate of the old length, at its end often 0."""

    def __init__(self, planned: int) -> None:
        self.planned = planned

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> None:
        before = optimizer.param_groups[0]["lr"]
        if isinstance(lr_scheduler, LambdaLR):  # others follow the held-out loss
            lr_scheduler.last_epoch -= 1
            lr_scheduler.step()
        log.info(
            "continuing after step %d with %d steps instead of %d: the learning rate follows the "
            "%s schedule of all %d, so it is now %.2g instead of %.2g",
            state.global_step, state.max_steps, self.planned, args.lr_scheduler_type.value,
            state.max_steps, optimizer.param_groups[0]["lr"], before,
        )  # fmt: skip


class SameFlags(TrainerCallback):
    """Gives all processes of a run the same control flags: a signal may reach only one of them, and
    their clocks differ. Callbacks that set flags come before it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        flags = [name for name in vars(control) if name.startswith("should_")]
        wanted = any_of([getattr(control, name) for name in flags])
        for name, value in zip(flags, wanted, strict=True):
            setattr(control, name, value)

    on_epoch_end = on_step_end
