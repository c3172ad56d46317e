"""The result folder of a benchmark, and benchmarks that run every arm once per round in this
process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.job import Job
from fasttune.machine import device_name, versions
from fasttune.processes import require_one

log = logging.getLogger(__name__)

T = TypeVar("T")


def result_folder(target: Path | None, what: str, job: Job) -> Path:
    """Choose the result folder: `target`, or one below bench/ named after the job and the time."""
    require_one("a benchmark")
    if target is None:
        words = (what, job.template.name, Path(job.model).name)
        return Path("bench") / f"{'-'.join(words)}-{datetime.now():%Y%m%d-%H%M%S}"
    if target.exists():
        raise FasttuneError("the result folder exists", str(target), "choose another with --output")
    return target


def circumstances(job: Job) -> dict[str, Any]:
    """What bench.json of any benchmark says of the job and the machine."""
    return {
        "template": job.template.name,
        "model": job.model,
        "device": device_name(),
        "versions": versions(),
    }


def bench_rounds(
    what: str,
    measure: Callable[[Job, int], dict[str, dict[str, Any]]],
    job: Job,
    rounds: int,
    target: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """Measure several arms with the rows of a job, and write the result.

    Args:
        measure: takes the job and the rounds, and returns the figures of each arm.
        target: the result folder; None makes one below bench/.

    Returns:
        The folder and the content of bench.json.

    Raises:
        FasttuneError: the folder exists, or this is one of several processes.
    """
    target = result_folder(target, what, job)
    result = {
        "what": what,
        **circumstances(job),
        "data": {"source": job.source, "rows": len(job.train)},
        "arms": measure(job, rounds),
        "config": job.config.as_dict(),
    }
    with atomic_folder(target) as folder:
        write_json(folder / "bench.json", result)
    return target, result


def run_rounds(
    arms: Mapping[str, Callable[[], T]], rounds: int, prepare: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Run every arm once in each round, after `prepare`, which is not timed.

    Returns:
        The seconds of each arm, and its last result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, T] = {}
    for number in range(rounds):
        prepare()
        for name, work in arms.items():
            start = time.perf_counter()
            results[name] = work()
            seconds[name].append(time.perf_counter() - start)
            log.info(f"round {number + 1}/{rounds}  {name} {seconds[name][-1]:.1f} s")
    return seconds, results


def compare_rounds(seconds: Mapping[str, list[float]], rows: int) -> dict[str, dict[str, Any]]:
    """Compute the medians of each arm's rows per second, and of its speedup over the first arm in
    the same round."""
    reference = next(iter(seconds.values()))
    return {
        name: {
            "rows_per_second": rows / median(own),
            "speedup": median(a / b for a, b in zip(reference, own, strict=True)),
            "seconds": own,
        }
        for name, own in seconds.items()
    }
