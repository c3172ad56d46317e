"""The hooks of a plugin: it implements any of these functions, marked with `@hookimpl`.

docs/plugins.md has an example of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fasttune.formats.template import Template
    from fasttune.plugins.exporter import Exporter
    from fasttune.plugins.metric import Metric

hookspec = pluggy.HookspecMarker("fasttune")
hookimpl = pluggy.HookimplMarker("fasttune")


@hookspec
def register_templates() -> list[Template]:  # type: ignore[empty-body]
    """Prompt formats."""


@hookspec
def register_metrics() -> list[Metric]:  # type: ignore[empty-body]
    """Metrics of generated answers; each measures one `Answer`."""


@hookspec
def register_exporters() -> list[Exporter]:  # type: ignore[empty-body]
    """Export forms; each fills a folder, and opens it again for verification."""


@hookspec
def training_callbacks(run: Path) -> list[TrainerCallback]:  # type: ignore[empty-body]
    """Callbacks for transformers' Trainer; `run` is the run folder, where a callback may write."""
