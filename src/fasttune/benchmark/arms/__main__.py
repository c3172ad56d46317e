"""The arms of a benchmark: one process each, which trains when it is told to.

    python -m fasttune.benchmark.arms ARM SPEC

Unsloth changes transformers for the whole process, so the plain arm must not share one with it.
So an arm is imported where it is run, and no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from fasttune.benchmark.pipe import Pace, Spec
from fasttune.errors import FasttuneError
from fasttune.machine import peak_memory
from fasttune.models.unsloth import hide_broken_torchvision, import_unsloth


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
        if arm == "plain":
            hide_broken_torchvision()
        else:
            import_unsloth()  # before the arm imports transformers, TRL and PEFT
        import_module(f"fasttune.benchmark.arms.{arm}").train(spec, pace, folder)
        pace.tell(peak_memory=peak_memory())
    except FasttuneError as error:
        pace.tell(error=[error.message, error.where, error.hint])
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
