"""Steps that go wrong: a loss that is no number, memory that runs out, a full disk."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from fasttune.data.rows import Rows
from fasttune.encoding.cache import EncodedRows
from fasttune.errors import EXIT_FAILURE, FasttuneError
from fasttune.planning.forecast import Forecast
from fasttune.runs import Run

PATIENCE = 20
"""Steps in a row that the scaling of an fp16 loss may skip: they take its 65536 to a sixteenth."""
SHOWN_ROWS = 3
"""Rows of a step that are shown with the beginning of their text."""


@dataclass(frozen=True)
class Troubles:
    """What errors and warnings of a training say about its rows and its memory.

    Attributes:
        run: its manifest keeps the limit of the batches.
        rows: what was encoded; `encoded` are those trained on.
    """

    run: Run | None = None
    rows: Rows | None = None
    encoded: EncodedRows | None = None
    planned: Forecast | None = None

    def named(self, places: Sequence[int]) -> str:
        """Name rows by their numbers in the source, with the beginning of the first of them."""
        if self.rows is None or self.encoded is None:
            return f"rows {', '.join(str(place + 1) for place in places)} of those trained on"
        among = self.encoded.places
        numbers = sorted((self.rows.number(among[place]), among[place]) for place in places)
        lines = [f"rows {', '.join(str(number) for number, _ in numbers)}"]
        for number, place in numbers[:SHOWN_ROWS]:
            lines.append(f"row {number}: {self.rows[place].get('instruction', '')[:60]!r}")
        return "\n".join(lines)

    def no_room(self, step: int, places: Sequence[int], tokens: int) -> FasttuneError:
        """The error if memory runs out with one row at a time."""
        hint = "lower model.max_length, set train.gradient_checkpointing=on, or take more memory"
        if change := self.planned.smaller() if self.planned else ():
            hint = f"this takes less: {' '.join(change)}"
        return FasttuneError(
            f"memory ran out at step {step}, with one row at a time, of up to {tokens} tokens",
            self.named(places) if places else "held-out rows",
            hint,
        )


class FiniteSteps(TrainerCallback):
    """Ends the training before the optimiser's step if the loss or the gradient is not finite. If
    the fp16 loss is `scaled`, only PATIENCE such gradients in a row are an error."""

    def __init__(self, troubles: Troubles = Troubles(), scaled: bool = False) -> None:
        self.troubles, self.scaled = troubles, scaled
        self._skipped = 0

    def note(self, loss: torch.Tensor, norm: torch.Tensor, places: Sequence[int]) -> None:
        """Keep a step's loss, the norm of its gradient before clipping, and the places of its rows
        until the check, without waiting for a GPU."""
        self._figures, self._places = (loss, norm), places

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the step's figures. Nothing else in a step waits for a GPU."""
        loss, norm = torch.stack([figure.double() for figure in self._figures]).tolist()
        if problem := self.problem(loss, norm, self.scaled):
            where = self.troubles.named(self._places)
            raise not_finite(f"step {state.global_step + 1}: {problem}", where)

    def problem(self, loss: float, norm: float, scaled: bool) -> str:
        """What is wrong with a step; "" if nothing is."""
        overflown = not math.isfinite(norm)
        self._skipped = self._skipped + 1 if overflown else 0
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if overflown and not scaled:
            return f"the gradient is {norm} (the loss is {loss:.4g})"
        if self._skipped >= PATIENCE:
            return f"the gradient is {norm}, for {PATIENCE} steps in a row (the loss is {loss:.4g})"
        return ""


def not_finite(what: str, where: str, trained: bool = True) -> FasttuneError:
    """The error for NaN or infinity. If nothing was trained, the base model gives it."""
    hint = (
        "lower train.learning_rate, or look at these rows; --resume continues from the last "
        "checkpoint, which is from before"
        if trained
        else "the base model gives it: set model.precision=fp32, or choose another model"
    )
    return FasttuneError(what, where, hint)


class NothingLearned(FasttuneError):
    """A training ended with the model that it began with."""

    exit_status = EXIT_FAILURE


def require_learned(model: Any, steps: int) -> None:
    """Refuse to save an adapter that changes nothing: LoRA adds B A x, and B begins as zero."""
    weights = [p for name, p in model.named_parameters() if "lora_B" in name]
    if not any(bool(weight.count_nonzero()) for weight in weights):
        raise NothingLearned(
            "nothing was learned: every LoRA matrix B is still zero",
            f"after {steps} steps",
            "raise train.learning_rate; metrics.jsonl has the rate and the gradient of each step",
        )


def require_finite(model: Any, when: str) -> None:
    """Refuse to save an adapter that contains NaN or infinity."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if not bool(torch.stack([torch.isfinite(weight).all() for weight in weights]).all()):
        raise not_finite("the adapter's weights contain NaN or infinity", when)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocator, that of a GPU or torch's own for the CPU, had no room."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def writing(folder: Path, name: str) -> Iterator[None]:
    """Turn a library's error for a full disk into a FasttuneError. `name` is what the block writes
    into the run's folder, unless the system's error names a file."""
    try:
        yield
    except FasttuneError:
        raise
    except Exception as error:  # safetensors and torch have exceptions of their own for it
        if not _no_room(error):
            raise
        file = Path(str(getattr(error, "filename", "")))
        name = str(file.relative_to(folder)) if folder in file.parents else name
        left = shutil.disk_usage(folder).free
        cause = getattr(error, "strerror", "") or os.strerror(errno.ENOSPC)
        raise FasttuneError(
            f"no room to write {name}: {cause}",
            f"{folder}, {left / 1e6:.1f} MB free",
            f"make room, then: fasttune run --resume {folder}",
        ) from error


def _no_room(error: BaseException | None) -> bool:
    """Whether an exception or one of its causes says that a disk is full."""
    of_torch = ("file write failed", "unexpected pos")
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), *of_torch)
    while error is not None and not any(each in str(error) for each in words):
        error = error.__cause__ or error.__context__
    return error is not None
