"""Run one arm of a training benchmark: python -m fasttune.benchmark.arms ARM SPEC

Unsloth changes transformers for the whole process, so each arm has its own process and imports
only its own module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from fasttune.benchmark.pipe import Pace, Spec
from fasttune.errors import FasttuneError
from fasttune.machine import peak_memory
from fasttune.models.unsloth import hide_broken_torchvision, import_unsloth


def main(arguments: Sequence[str]) -> None:
    arm, spec_file = arguments
    # The benchmark reads standard output. Libraries that print there get standard error.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    pace = Pace(sys.stdin, reports)
    folder = Path(spec_file).parent / arm
    folder.mkdir(exist_ok=True)
    try:
        if arm == "plain":
            hide_broken_torchvision()
        else:
            import_unsloth()  # before the arm imports transformers, TRL and PEFT
        train_arm(arm, Spec.read(Path(spec_file)), pace, folder)
        pace.report(peak_memory=peak_memory())
    except FasttuneError as error:
        pace.report(error=[error.message, error.where, error.hint])
        raise


def train_arm(arm: str, spec: Spec, pace: Pace, folder: Path) -> None:
    """Train an arm. fast_path is fasttune with `model.fast_path=on`, which CUDA needs."""
    if arm == "fast_path":
        model = replace(spec.config.model, fast_path="on")
        arm, spec = "fasttune", replace(spec, config=replace(spec.config, model=model))
    import_module(f"fasttune.benchmark.arms.{arm}").train(spec, pace, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
