"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fasttune.config import Override

Data = Annotated[
    str | None, typer.Option("--data", "-d", help="Rows: a file, a folder or a Hub name.")
]
TemplateName = Annotated[str | None, typer.Option("--template", "-t", help="Prompt format.")]
Columns = Annotated[
    list[str] | None, typer.Option("--map", help="Column mapping, as instruction=question.")
]
Turns = Annotated[
    str | None,
    typer.Option(
        help="Of a conversation take 'all' exchanges, or the 'first'.", show_default="all"
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(help="Any setting as KEY=VALUE, for instance train.epochs=2 lora.r=8."),
]
By = Annotated[
    str | None,
    typer.Option(help="Columns of the rows to split the figures by, as task,language."),
]
Together = Annotated[int, typer.Option(min=1, max=10**6, help="Rows answered at a time.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML of settings.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Hub name or folder. Default: microsoft/phi-2 on CUDA, else a small demo model.",
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        help="t4, v100, v100-32gb, v100-pcie, l4, a10, a10g, 3090, 4090, l40s, a100, "
        "a100-80gb, a100-80gb-pcie, h100, h100-pcie, or a memory as 16GB.",
        show_default="this machine",
    ),
]


def overrides(
    data: str | None,
    columns: list[str] | None,
    model: str | None,
    settings: list[str],
    **named: str | None,
) -> list[Override]:
    """The options and KEY=VALUE words as settings, in the order in which they win.

    Args:
        named: other options, named as their settings, as template="alpaca".

    Raises:
        FasttuneError: a word or a mapping cannot be read.
    """
    from fasttune.config import Override, parse_override
    from fasttune.data.load import parse_columns

    options = [
        *((name, f"--{name}", value) for name, value in named.items()),
        ("data.train", "--data", data),
        ("model.name", "--model", model),
    ]
    given = [
        Override(key, value, f"{option} {value}")
        for key, option, value in options
        if value is not None
    ]
    if data is not None:  # in place of a config's several
        given.append(Override("data.sources", (), f"--data {data}"))
    if columns:
        given.append(Override("data.columns", parse_columns(columns), f"--map {' '.join(columns)}"))
    return given + [parse_override(text) for text in settings]
