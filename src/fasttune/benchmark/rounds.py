"""Benchmarks of what is no training: several ways to one thing in this process, round by round.

The result folder:
bench.json  settings, versions, the seconds of every arm in every round, and the figures
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from fasttune.files import atomic_folder, write_json
from fasttune.job import Job
from fasttune.machine import device_name, versions

log = logging.getLogger(__name__)

T = TypeVar("T")


def in_rounds(
    arms: Mapping[str, Callable[[], T]], rounds: int, begin: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Let every arm do its work once in each round.

    Args:
        begin: called before each round.

    Returns:
        for each arm its seconds, and what it gave last.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    found: dict[str, T] = {}
    for number in range(rounds):
        begin()
        for name, work in arms.items():
            began = time.perf_counter()
            found[name] = work()
            seconds[name].append(time.perf_counter() - began)
            log.info(f"round {number + 1}/{rounds}  {name} {seconds[name][-1]:.1f} s")
    return seconds, found


def figures(seconds: Mapping[str, list[float]], rows: int) -> dict[str, dict[str, Any]]:
    """Rows per second of each arm, the median of its rounds, and the median of the ratios to the
    first arm in the same round."""
    first = next(iter(seconds.values()))
    return {
        name: {
            "rows_per_second": rows / median(taken),
            "speedup": median(a / b for a, b in zip(first, taken, strict=True)),
            "seconds": taken,
        }
        for name, taken in seconds.items()
    }


def write_result(
    what: str, job: Job, rows: int, arms: Mapping[str, Any], target: Path
) -> dict[str, Any]:
    """Write the result folder, and return what bench.json holds."""
    result = {
        "what": what,
        "template": job.template.name,
        "model": job.model,
        "device": device_name(),
        "versions": versions(),
        "data": {"source": job.source, "rows": rows},
        "arms": dict(arms),
        "config": job.config.as_dict(),
    }
    with atomic_folder(target) as folder:
        write_json(folder / "bench.json", result)
    return result
