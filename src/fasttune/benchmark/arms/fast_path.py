"""fasttune's own arm with the fast path on, which on CUDA it is not by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fasttune.benchmark.arms import fasttune
from fasttune.benchmark.pipe import Pace, Spec


def train(spec: Spec, pace: Pace, folder: Path) -> None:
    """What `fasttune run ... model.fast_path=on` does."""
    config = spec.config
    on = replace(config, model=replace(config.model, fast_path="on"))
    fasttune.train(replace(spec, config=on), pace, folder)
