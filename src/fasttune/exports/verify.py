"""Compare an export with its run: prompts, logits, answers and their ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.plugins.exporter import Bounds, Reader

GREEDY = 64
"""Tokens generated per row."""


@dataclass(frozen=True)
class Measured:
    """What one side computed for one row.

    Attributes:
        prompt: ids of the prompt.
        answer: ids generated greedily, at most GREEDY.
        logits: [n, vocabulary] over the n ids of the run's prompt and answer.
        eos: ids at which this side stops.
    """

    prompt: list[int]
    answer: list[int]
    logits: np.ndarray
    eos: set[int]


def measure(
    reader: Reader, rows: Sequence[Row], expected: Sequence[Measured] | None = None
) -> list[Measured]:
    """Measure one side, on the ids of the run; `expected` is what the run measured."""
    measured = []
    for number, row in enumerate(rows):
        prompt = reader.prompt_ids(row)
        start = expected[number].prompt if expected else prompt
        answer = reader.greedy(start, GREEDY)
        rest = expected[number].answer if expected else answer
        measured.append(Measured(prompt, answer, reader.logits([*start, *rest]), reader.eos_ids()))
    return measured


@dataclass(frozen=True)
class Verification:
    """How far an export is from its run.

    Attributes:
        positions: number of tokens whose logits were compared: prompts and the run's answers.
        prompts_equal: rows whose prompt ids are equal.
        max_dlogit: largest |difference| of any logit.
        mean_kl: mean over the positions of KL(run || export), in nats.
        greedy_equal: of the run's `greedy` generated tokens, those before the first that differs
            in its row.
        failures: what is outside the bounds, one line each.
    """

    rows: int
    positions: int
    prompts_equal: int
    max_dlogit: float
    mean_kl: float
    greedy_equal: int
    greedy: int
    eos_run: list[int]
    eos_export: list[int]
    bounds: Bounds
    failures: list[str]

    @property
    def verified(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        status = "passed" if self.verified else "failed"
        return {"verified": self.verified, "status": status, **asdict(self)}

    def lines(self) -> list[tuple[str, str, str]]:
        """(name, value, bound) of each figure."""
        logits = "no bound" if self.bounds.logits is None else f"at most {self.bounds.logits:g}"
        return [
            ("prompt ids", f"{self.prompts_equal} of {self.rows} rows equal", "all"),
            ("max |Δlogit|", f"{self.max_dlogit:.2e} over {self.positions} positions", logits),
            ("mean KL", f"{self.mean_kl:.2e} nats", f"at most {self.bounds.kl:g}"),
            ("greedy tokens", f"{self.greedy_equal} of {self.greedy} agree", "up to ties"),
            ("stops at", f"{self.eos_export}, the run at {self.eos_run}", "equal"),
        ]


@dataclass(frozen=True)
class Exported:
    """A written export.

    Attributes:
        verification: None if it was not asked for, or could not be done.
        obstacle: why it could not be done.
        pushed: the address on the Hub, if it was pushed.
    """

    folder: Path
    verification: Verification | None
    obstacle: FasttuneError | None = None
    pushed: str | None = None

    @property
    def failures(self) -> list[str]:
        """Why verification failed."""
        if self.obstacle is not None:
            return [str(self.obstacle)]
        return self.verification.failures if self.verification is not None else []

    def as_dict(self) -> dict[str, Any]:
        """The content of verification.json."""
        if self.verification is not None:
            return self.verification.as_dict()
        why = {"reason": str(self.obstacle)} if self.obstacle is not None else {}
        return {"verified": False, "status": "not run", **why}


def read_exported(folder: Path, record: Mapping[str, Any]) -> Exported:
    """The export of a verification.json."""
    if record["status"] == "not run":
        reason = record.get("reason")
        return Exported(folder, None, FasttuneError(reason) if reason else None)
    return Exported(folder, msgspec.convert(record, Verification))


def judge(run: Sequence[Measured], export: Sequence[Measured], bounds: Bounds) -> Verification:
    """Compare what an export and its run computed, row by row."""
    failures: list[str] = []
    dlogits, kls, agreeing = [0.0], [], 0
    for number, (old, new) in enumerate(zip(run, export, strict=True), 1):
        if old.prompt != new.prompt:
            at = _common_length(old.prompt, new.prompt)
            ids, expected = new.prompt[at : at + 4], old.prompt[at : at + 4]
            failures.append(
                f"row {number}: prompt ids differ from position {at} on: {ids}, "
                f"the run has {expected}"
            )
        if old.logits.shape != new.logits.shape:
            failures.append(
                f"row {number}: logits are {new.logits.shape}, the run's {old.logits.shape}"
            )
            continue
        dlogits.append(float(np.abs(old.logits - new.logits).max()))
        kls.append(kl_divergence(old.logits, new.logits))
        same = _common_length(old.answer, new.answer)
        agreeing += same
        if problem := _unexplained(old, new, same, bounds):
            failures.append(f"row {number}: {problem}")
    eos_run, eos_export = (sorted(set().union(*(m.eos for m in side))) for side in (run, export))
    if eos_run != eos_export:
        failures.append(f"the export stops at {eos_export or 'no id'}, the run at {eos_run}")
    # With `not <=`, NaN fails as well.
    max_dlogit = float(np.max(dlogits))
    if bounds.logits is not None and not max_dlogit <= bounds.logits:
        failures.append(f"max |Δlogit| is {max_dlogit:.2e}, the bound {bounds.logits:g}")
    mean_kl = float(np.concatenate(kls).mean()) if kls else float("nan")
    if not mean_kl <= bounds.kl:
        failures.append(f"mean KL is {mean_kl:.2e} nats, the bound {bounds.kl:g}")
    return Verification(
        rows=len(run),
        positions=sum(map(len, kls)),
        prompts_equal=sum(old.prompt == new.prompt for old, new in zip(run, export, strict=True)),
        max_dlogit=max_dlogit,
        mean_kl=mean_kl,
        greedy_equal=agreeing,
        greedy=sum(len(old.answer) for old in run),
        eos_run=eos_run,
        eos_export=eos_export,
        bounds=bounds,
        failures=failures,
    )


def kl_divergence(run: np.ndarray, export: np.ndarray) -> np.ndarray:
    """KL(run || export) = sum_v p_run(v) (ln p_run(v) - ln p_export(v)) in nats (Kullback and
    Leibler, 1951): [n, vocabulary] twice -> [n], float64."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (run, export))
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def _unexplained(old: Measured, new: Measured, same: int, bounds: Bounds) -> str:
    """Why the answers differ, unless the bound of the logits allows it: two tokens may be nearly
    tied."""
    if old.answer == new.answer:
        return ""
    for longer, shorter, name in ((old, new, "run"), (new, old, "export")):
        if same == len(shorter.answer):
            token = longer.answer[same]
            return f"only the {name} goes on after {same} tokens, with token {token}"
    token, expected = new.answer[same], old.answer[same]
    scores = old.logits[len(old.prompt) + same - 1]
    if bounds.logits is None or scores[expected] - scores[token] <= 2 * bounds.logits:
        return ""
    return f"token {same + 1} of the answer is {token}, the run's {expected}"


def _common_length(first: list[int], second: list[int]) -> int:
    return len(os.path.commonprefix([first, second]))
