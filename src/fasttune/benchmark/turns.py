"""Benchmark the same training by several programs, in turns, on the same machine."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fasttune.benchmark.arms import Spec, run_arm
from fasttune.benchmark.figures import BenchStep, plot, step_figures, tokens_per_second
from fasttune.benchmark.rounds import circumstances, result_folder
from fasttune.config import PRECISIONS, RunConfig, with_training
from fasttune.encoding.cache import encode_rows
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.job import Job
from fasttune.machine import this_device
from fasttune.models.choices import Choices, decide, require_precision
from fasttune.models.tokenizer import load_tokenizer
from fasttune.planning.forecast import foresee
from fasttune.planning.schedule import settle, steps

log = logging.getLogger(__name__)

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit")
"""The optimisers that the plain arm has too; the last one only on CUDA."""


@dataclass(frozen=True)
class Outcome:
    """The training of one arm: its steps, number of trainable parameters and peak memory in
    bytes."""

    steps: list[BenchStep]
    parameters: int
    peak_memory: int


def bench_train(
    job: Job, arms: Sequence[str], block: int, notebook_checkpointing: bool, target: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Train every arm on the rows of a job, in turns of `block` steps, and write the result.

    Args:
        target: see `result_folder`, also for errors.

    Returns:
        The folder and the content of bench.json.

    Raises:
        FasttuneError: there are too few rows for two blocks, or an arm lacks a setting or ended
            with an error.
    """
    device = this_device()
    require_precision(job.config.model, device)
    target = result_folder(target, "train", job)
    tokenizer = load_tokenizer(job.model, job.template.end)
    rows = encode_rows(job.template, job.train, tokenizer, job.config, "training")
    config = settle(job.config, job.model, len(rows))
    plan = foresee(config, job.model, rows.lengths, device)
    choices = decide(plan.config if plan else config, device)
    config = resolved(config, job.model, choices)
    spec = make_spec(rows, config, block, notebook_checkpointing)
    together = plan is not None and len(arms) * plan.memory.peak <= device.memory
    if not together:
        log.info("the arms may not fit into memory together: they train one after the other")
    outcomes = run_arms(arms, spec, block, together)
    result = _result(job, config, spec, block, outcomes)
    with atomic_folder(target) as folder:
        write_json(folder / "bench.json", result)
        plot(result, folder / "bench.png")
    return target, result


def _result(
    job: Job, config: RunConfig, spec: Spec, block: int, outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """Build the content of bench.json."""
    parameters = {arm: outcome.parameters for arm, outcome in outcomes.items()}
    if len({*parameters.values()}) > 1:
        raise FasttuneError(
            "the arms train different numbers of parameters",
            ", ".join(f"{arm} {number}" for arm, number in parameters.items()),
            "name the layers to train with lora.targets, or leave an arm out with --arms",
        )
    compared = step_figures({arm: outcome.steps for arm, outcome in outcomes.items()}, block)
    checkpointing = dict.fromkeys(outcomes, config.train.gradient_checkpointing)
    if spec.notebook_checkpointing and "unsloth" in outcomes:
        checkpointing["unsloth"] = "unsloth"
    for arm, outcome in outcomes.items():
        compared[arm] |= {
            "peak_memory_bytes": outcome.peak_memory,
            "gradient_checkpointing": checkpointing[arm],
            "steps": [vars(step) for step in outcome.steps],
        }
    return {
        **circumstances(job),
        "quantization": config.model.quantization,
        "precision": config.model.precision,
        "data": {"source": job.source, "rows": len(spec.rows), "tokens": sum(map(len, spec.rows))},
        "steps": spec.steps,
        "rows_per_step": _rows_per_step(config),
        "block": block,
        "warmup_steps": block,
        "trainable_parameters": next(iter(parameters.values())),
        "arms": compared,
        "config": config.as_dict(),
    }


def resolved(config: RunConfig, model: str, choices: Choices) -> RunConfig:
    """Replace every "auto" in the config. Refuse an optimizer that an arm lacks."""
    known = OPTIMIZERS if choices.kind == "cuda" else OPTIMIZERS[:-1]
    if choices.optimizer not in known:
        raise FasttuneError(
            f"not every arm can use the optimiser '{choices.optimizer}' here",
            "train.optimizer",
            f"use one of {', '.join(known)}",
        )
    precision: Any = PRECISIONS[choices.dtype]
    settings = replace(
        config.model, name=model, quantization=choices.quantization, precision=precision
    )
    return with_training(
        replace(config, model=settings),
        optimizer=choices.optimizer,
        gradient_checkpointing=choices.checkpointing,
        log_steps=1,  # arms report a step when its loss is logged
    )


def make_spec(
    rows: Sequence[Encoded], config: RunConfig, block: int, notebook_checkpointing: bool
) -> Spec:
    """Make the task of the arms: whole steps, more than one block of them."""
    per_step = _rows_per_step(config)
    kept = list(rows[: len(rows) // per_step * per_step])
    if len(kept) < len(rows):
        left_out = len(rows) - len(kept)
        log.info(f"left out the last {left_out} rows, which fill no step of {per_step}")
    count = steps(len(kept), config) if kept else 0
    if count <= block:
        raise FasttuneError(
            f"{len(rows)} rows make {count} steps of {per_step}; the first {block} warm up and do "
            "not count",
            "--rows, --block",
            "give more rows, or a smaller block",
        )
    # With max_steps, transformers starts over after the last row.
    return Spec(with_training(config, max_steps=count), kept, count, notebook_checkpointing)


LOG_LINES = 8
"""Lines of an arm's log that the error shows if the arm ends early."""


class Worker:
    """The process of one arm, with its log and files in a folder. Leaving the `with` block kills
    it."""

    def __init__(self, arm: str, spec: Spec, folder: Path) -> None:
        self.arm, self._log = arm, folder / f"{arm}.log"
        self._log.touch()
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=run_arm, args=(arm, spec, other_end, folder))
        # The number of threads is the same for every arm, all the time.
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
        with patch.dict(os.environ, environment):
            self._process.start()
        other_end.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def send(self, steps: int) -> None:
        """Let the arm take steps."""
        try:
            self._pipe.send(steps)
        except ConnectionError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """Wait for the arm's next report: `parameters` once its model is loaded, `seconds` and
        `loss` of each step, `peak_memory` in bytes at the end."""
        try:
            report: dict[str, Any] | FasttuneError = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if isinstance(report, FasttuneError):
            what = f"the {self.arm} arm failed: {report.message}"
            raise FasttuneError(what, report.where, report.hint)
        return report

    def _ended(self) -> FasttuneError:
        self._process.join()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return FasttuneError(
            f"the {self.arm} arm ended early (exit status {self._process.exitcode})",
            "\n".join(lines[-LOG_LINES:]),
            "see the last lines of its log above; --arms can leave the arm out",
        )


def run_arms(arms: Sequence[str], spec: Spec, block: int, together: bool) -> dict[str, Outcome]:
    """Train the arms: in turns if all fit into memory together, else one after the other."""
    outcomes: dict[str, Outcome] = {}
    for group in [arms] if together else [[arm] for arm in arms]:
        outcomes |= _in_turns(group, spec, block)
    return outcomes


def _in_turns(arms: Sequence[str], spec: Spec, block: int) -> dict[str, Outcome]:
    """Load all arms, then let each train a block of steps at a time. The order rotates."""
    per_step = _rows_per_step(spec.config)
    lengths = [len(row) for row in spec.rows]
    starts = range(0, spec.steps, block)
    steps_of: dict[str, list[BenchStep]] = {arm: [] for arm in arms}
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="fasttune-bench-")
        folder = Path(stack.enter_context(temporary))
        workers, parameters = {}, {}
        for arm in arms:
            workers[arm] = stack.enter_context(Worker(arm, spec, folder))
            parameters[arm] = int(workers[arm].receive()["parameters"])
            log.info(f"{arm}: loaded")
        for number, start in enumerate(starts):
            first_arm = number % len(arms)
            for arm in [*arms[first_arm:], *arms[:first_arm]]:
                places = range(start, min(start + block, spec.steps))
                workers[arm].send(len(places))
                for place in places:
                    report = workers[arm].receive()
                    row = place * per_step % len(lengths)
                    tokens = sum(lengths[row : row + per_step])
                    steps_of[arm].append(BenchStep(report["seconds"], tokens, report["loss"]))
                own = steps_of[arm][start:]
                log.info(
                    f"block {number + 1}/{len(starts)}  {arm:<9} "
                    f"{tokens_per_second(own):.0f} tokens/s  loss {own[-1].loss:.4f}"
                )
        for worker in workers.values():
            worker.send(0)
        return {
            arm: Outcome(steps_of[arm], parameters[arm], worker.receive()["peak_memory"])
            for arm, worker in workers.items()
        }


def _rows_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.train.gradient_accumulation
