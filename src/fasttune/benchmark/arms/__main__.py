"""The arms of a benchmark: one process each, which trains when it is told to.

    python -m fasttune.benchmark.arms ARM SPEC

Unsloth changes transformers for the whole process, so the plain arm must not share one with it.
Nothing here imports unsloth before the arm that needs it does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fasttune.benchmark.arms.fasttune import train_fasttune
from fasttune.benchmark.arms.plain import train_plain
from fasttune.benchmark.arms.unsloth import train_unsloth
from fasttune.benchmark.pipe import Pace, Spec
from fasttune.errors import FasttuneError
from fasttune.machine import peak_memory

ARMS: dict[str, Callable[[Spec, Pace, Path], None]] = {
    "plain": train_plain,
    "unsloth": train_unsloth,
    "fasttune": train_fasttune,
}


def main(arguments: Sequence[str]) -> None:
    arm, spec_file = arguments
    # Libraries print to standard output, which the benchmark reads: they get standard error.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    spec = Spec.read(Path(spec_file))
    pace = Pace(sys.stdin, reports)
    folder = Path(spec_file).parent / arm
    folder.mkdir(exist_ok=True)
    try:
        ARMS[arm](spec, pace, folder)
        pace.tell(peak_memory=peak_memory())
    except FasttuneError as error:
        pace.tell(error=[error.message, error.where, error.hint])
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
