"""Holding an export against its run: are prompts, logits, answers and their ends the same?"""

from __future__ import annotations

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
    """What one side made of one row.

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
    """Take the figures of one side.

    `expected` are the run's, whose ids both sides are measured on.
    """
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
    """An export's figures against its run's.

    Attributes:
        positions: number of tokens whose logits were compared: prompts and the run's answers.
        prompts_equal: rows whose prompt ids are equal.
        max_dlogit: largest |difference| of any logit.
        mean_kl: mean over the positions of KL(run || export) = sum_v p_run(v) (ln p_run(v) -
            ln p_export(v)), in nats (Kullback and Leibler, 1951).
        greedy_equal: of the run's `greedy` generated tokens, those before the first one in their
            row that the export generates otherwise.
        failures: what lies outside the bounds, one line each.
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
        return {
            "verified": self.verified,
            "status": "passed" if self.verified else "failed",
            **asdict(self),
        }

    def lines(self) -> list[tuple[str, str, str]]:
        """The figures as (name, value, bound), for people."""
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
    """What came of an export.

    Attributes:
        verification: None where it was not asked for, or could not be done.
        obstacle: why it could not be done.
        pushed: the address on the Hub, where it was pushed.
    """

    folder: Path
    verification: Verification | None
    obstacle: FasttuneError | None = None
    pushed: str | None = None

    @property
    def failures(self) -> list[str]:
        """Why the export does not count as verified although that was asked for."""
        if self.obstacle is not None:
            return [str(self.obstacle)]
        return self.verification.failures if self.verification is not None else []

    def as_dict(self) -> dict[str, Any]:
        """The content of verification.json."""
        if self.verification is None:
            why = {"reason": str(self.obstacle)} if self.obstacle is not None else {}
            return {"verified": False, "status": "not run", **why}
        return self.verification.as_dict()


def read_exported(folder: Path, record: Mapping[str, Any]) -> Exported:
    """What came of an export, as its verification.json has it."""
    if record["status"] == "not run":
        reason = record.get("reason")
        return Exported(folder, None, FasttuneError(reason) if reason else None)
    return Exported(folder, msgspec.convert(record, Verification))


def judge(run: Sequence[Measured], export: Sequence[Measured], bounds: Bounds) -> Verification:
    """Hold the figures of an export against those of its run, row by row."""
    failures: list[str] = []
    dlogits, kls, agreeing = [0.0], [], 0
    for number, (old, new) in enumerate(zip(run, export, strict=True), 1):
        if old.prompt != new.prompt:
            failures.append(f"row {number}: {_first_difference(old.prompt, new.prompt)}")
        if old.logits.shape != new.logits.shape:
            failures.append(
                f"row {number}: logits are {new.logits.shape}, the run's {old.logits.shape}"
            )
            continue
        dlogits.append(float(np.abs(old.logits - new.logits).max()))
        kls.append(kl_divergence(old.logits, new.logits))
        same = _common_prefix(old.answer, new.answer)
        agreeing += same
        if problem := _unexplained(old, new, same, bounds):
            failures.append(f"row {number}: {problem}")
    eos_run, eos_export = (sorted(set().union(*(m.eos for m in side))) for side in (run, export))
    if eos_run != eos_export:
        failures.append(f"the export stops at {eos_export or 'no id'}, the run at {eos_run}")
    # Written so that a NaN fails as well.
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
    """KL(run || export) in nats for each row of logits: [n, vocabulary] twice -> [n], float64."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (run, export))
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def _unexplained(old: Measured, new: Measured, same: int, bounds: Bounds) -> str:
    """Why the answers part, unless the logits' bound allows it: two tokens may be nearly tied."""
    if same == len(old.answer) == len(new.answer):
        return ""
    if same == len(new.answer) or same == len(old.answer):
        longer, at = (
            ("run", old.answer[same]) if same == len(new.answer) else ("export", new.answer[same])
        )
        return f"only the {longer} goes on after {same} tokens, with token {at}"
    if bounds.logits is None:
        return ""
    scores = old.logits[len(old.prompt) + same - 1]
    lead = float(scores[old.answer[same]] - scores[new.answer[same]])
    if lead <= 2 * bounds.logits:
        return ""
    return f"token {same + 1} of the answer is {new.answer[same]}, the run's {old.answer[same]}"


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _first_difference(old: Sequence[int], new: Sequence[int]) -> str:
    at = _common_prefix(old, new)
    return (
        f"prompt ids differ from position {at} on: {list(new[at : at + 4])}, "
        f"the run has {list(old[at : at + 4])}"
    )
