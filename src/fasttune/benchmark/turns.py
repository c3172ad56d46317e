"""A benchmark: the same training by several programs, in turns, on the same machine.

The result folder:
bench.json  settings, versions, the figures of every arm, and every step's seconds, tokens and loss
bench.png   seconds per step, tokens per second and losses
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune.benchmark.figures import Step, figures, plot
from fasttune.benchmark.folder import new_folder, require_new
from fasttune.benchmark.pipe import Spec, Worker
from fasttune.config import PRECISIONS, RunConfig, steps
from fasttune.encoding.cache import encode_rows
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.job import Job
from fasttune.machine import device_name, this_device, versions
from fasttune.models.choices import Choices, decide
from fasttune.models.tokenizer import load_tokenizer
from fasttune.planning.forecast import foresee
from fasttune.processes import require_one

log = logging.getLogger(__name__)

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit")
"""Those that the plain arm has too."""


@dataclass(frozen=True)
class Outcome:
    """What a worker has to tell at its end.

    Attributes:
        steps: in order.
        parameters: trainable ones.
        peak_memory: of its process, in bytes.
    """

    steps: list[Step]
    parameters: int
    peak_memory: int


def bench(
    job: Job,
    arms: Sequence[str],
    block: int,
    notebook_checkpointing: bool,
    target: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """Train every arm on the rows of a job, in turns of `block` steps, and write the result.

    Args:
        target: the result folder; None makes one below bench/.

    Returns:
        The folder, and what bench.json holds.

    Raises:
        FasttuneError: there are too few rows for two blocks, the folder exists, a setting is not
            one that all arms have, an arm ended with an error, or this is one of several
            processes.
    """
    require_one("a benchmark")
    tokenizer = load_tokenizer(job.model)
    rows = encode_rows(job.template, job.train, tokenizer, job.config, "training")
    device = this_device()
    planned = foresee(job.config, job.model, rows.lengths, device)
    choices = planned.choices if planned is not None else decide(job.config, device)
    config = resolved(job.config, job.model, choices)
    spec = make_spec(rows, config, block, notebook_checkpointing)
    name = Path(str(config.model.name)).name
    target = target or new_folder(config.template, name, str(config.model.quantization))
    require_new(target)
    together = planned is not None and len(arms) * planned.memory.peak <= device.memory
    if not together:
        log.info("the arms do not fit together, as far as is known: they train one after the other")
    outcomes = run_arms(arms, spec, block, together)
    result = _result(job, config, spec, block, outcomes)
    with atomic_folder(target) as folder:
        write_json(folder / "bench.json", result)
        plot(result, folder / "bench.png")
    return target, result


def _result(
    job: Job, config: RunConfig, spec: Spec, block: int, outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """What bench.json holds."""
    counts = {outcome.parameters for outcome in outcomes.values()}
    if len(counts) > 1:
        told = ", ".join(f"{arm} {outcome.parameters}" for arm, outcome in outcomes.items())
        raise FasttuneError("the arms train different numbers of parameters", told, "")
    compared = figures({arm: outcome.steps for arm, outcome in outcomes.items()}, block)
    for arm, outcome in outcomes.items():
        notebook = arm == "unsloth" and spec.notebook_checkpointing
        compared[arm] |= {
            "peak_memory_bytes": outcome.peak_memory,
            "gradient_checkpointing": "unsloth"
            if notebook
            else config.train.gradient_checkpointing,
            "steps": [vars(step) for step in outcome.steps],
        }
    return {
        "template": job.template.name,
        "model": job.model,
        "quantization": config.model.quantization,
        "precision": config.model.precision,
        "device": device_name(),
        "versions": versions(),
        "data": {
            "source": job.source,
            "rows": len(spec.rows),
            "tokens": sum(map(len, spec.rows)),
        },
        "steps": spec.steps,
        "rows_per_step": _rows_per_step(config),
        "block": block,
        "warmup_steps": block,
        "trainable_parameters": counts.pop(),
        "arms": compared,
        "config": config.as_dict(),
    }


def resolved(config: RunConfig, model: str, choices: Choices) -> RunConfig:
    """The config with every "auto" replaced by what `fasttune run` makes of it here.

    Raises:
        FasttuneError: the optimiser is not one that all arms have.
    """
    known = OPTIMIZERS if choices.kind == "cuda" else OPTIMIZERS[:2]
    if choices.optimizer not in known:
        raise FasttuneError(
            f"not every arm can use the optimiser '{choices.optimizer}' here",
            "train.optimizer",
            f"one of {', '.join(known)}",
        )
    used: dict[str, Any] = {
        "name": model,
        "quantization": choices.quantization,
        "precision": PRECISIONS[choices.dtype],
    }
    chosen: dict[str, Any] = {
        "optimizer": choices.optimizer,
        "gradient_checkpointing": choices.checkpointing,
        "log_steps": 1,  # a step is told when its loss is logged
    }
    return replace(
        config, model=replace(config.model, **used), train=replace(config.train, **chosen)
    )


def make_spec(
    rows: Sequence[Encoded],
    config: RunConfig,
    block: int,
    notebook_checkpointing: bool,
) -> Spec:
    """What the arms are given: whole steps, of which two blocks or more.

    Raises:
        FasttuneError: the rows do not make that many.
    """
    at_a_time = _rows_per_step(config)
    kept = list(rows[: len(rows) // at_a_time * at_a_time])
    if len(kept) < len(rows):
        log.info(
            f"left out the last {len(rows) - len(kept)} rows, which fill no step of {at_a_time}"
        )
    count = steps(len(kept), config) if kept else 0
    if count <= block:
        raise FasttuneError(
            f"{len(rows)} rows make {count} steps of {at_a_time}; the first {block} warm up and do "
            "not count",
            "--rows, --block",
            "give more rows, or a smaller block",
        )
    # transformers' own way to a number of steps; the rows begin again where they end.
    train = replace(config.train, max_steps=count)
    return Spec(replace(config, train=train), kept, count, notebook_checkpointing)


def run_arms(arms: Sequence[str], spec: Spec, block: int, together: bool) -> dict[str, Outcome]:
    """Load the arms and let them train, in turns where all of them fit into memory together; the
    order rotates from block to block.

    Raises:
        FasttuneError: an arm ended with an error. No process is left behind.
    """
    groups = [arms] if together else [[arm] for arm in arms]
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as folder:
        spec_file = Path(folder) / "spec.json"
        spec.write(spec_file)
        outcomes: dict[str, Outcome] = {}
        for group in groups:
            outcomes |= _in_turns(group, spec, spec_file, block)
        return outcomes


def _in_turns(arms: Sequence[str], spec: Spec, spec_file: Path, block: int) -> dict[str, Outcome]:
    per_step = _rows_per_step(spec.config)
    lengths = [len(row) for row in spec.rows]
    blocks = range(0, spec.steps, block)
    taken: dict[str, list[Step]] = {arm: [] for arm in arms}
    with ExitStack() as stack:
        workers, parameters = {}, {}
        for arm in arms:
            workers[arm] = stack.enter_context(Worker(arm, spec_file))
            parameters[arm] = int(workers[arm].receive()["parameters"])
            log.info(f"{arm}: loaded")
        for number, first in enumerate(blocks):
            turn = number % len(arms)
            for arm in [*arms[turn:], *arms[:turn]]:
                count = min(block, spec.steps - first)
                workers[arm].send(steps=count)
                for index in range(first, first + count):
                    start = index * per_step % len(lengths)
                    told = workers[arm].receive()
                    tokens = sum(lengths[start : start + per_step])
                    taken[arm].append(Step(told["seconds"], tokens, told["loss"]))
                log.info(
                    f"block {number + 1}/{len(blocks)}  {_block_line(arm, taken[arm][first:])}"
                )
        for worker in workers.values():
            worker.send(steps=0)
        return {
            arm: Outcome(taken[arm], parameters[arm], worker.receive()["peak_memory"])
            for arm, worker in workers.items()
        }


def _rows_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.train.gradient_accumulation


def _block_line(arm: str, taken: Sequence[Step]) -> str:
    tokens, seconds = sum(s.tokens for s in taken), sum(s.seconds for s in taken)
    return f"{arm:<9} {tokens / seconds:.0f} tokens/s  loss {taken[-1].loss:.4f}"
