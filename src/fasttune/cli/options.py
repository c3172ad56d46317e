"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    str | None, typer.Option("--data", "-d", help="Rows: a file, a folder or a Hub name.")
]
TemplateName = Annotated[str | None, typer.Option("--template", "-t", help="Prompt format.")]
Columns = Annotated[
    list[str] | None, typer.Option("--map", help="Column mapping, as instruction=question.")
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML of settings.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Hub name or folder. Default: microsoft/phi-2 on CUDA, else a small demo model.",
    ),
]


def overrides(
    data: str | None, columns: list[str] | None, model: str | None, settings: list[str]
) -> list[tuple[str, Any]]:
    """The options and KEY=VALUE words as settings, in the order in which they win.

    Raises:
        FasttuneError: a word or a mapping cannot be read.
    """
    from fasttune.config import parse_override
    from fasttune.data.load import parse_columns

    named = {
        "data.train": data,
        "data.columns": parse_columns(columns) if columns else None,
        "model.name": model,
    }
    given = [(key, value) for key, value in named.items() if value is not None]
    return given + [parse_override(text) for text in settings]
