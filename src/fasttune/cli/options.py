"""Options that several commands share, and short ways to declare the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fasttune.config import Override

MANY = 10**6


def option(help: str, *names: str, **more: Any) -> Any:
    """An option that takes a value."""
    return typer.Option(*names, help=help, **more)


def argument(help: str, **more: Any) -> Any:
    return typer.Argument(help=help, **more)


def flag(help: str, *names: str) -> Any:
    """An option that is there or not, without a --no- form."""
    return typer.Option(*names, help=help)


def number(help: str, least: int = 1, most: int = MANY, **more: Any) -> Any:
    """An option that takes a whole number between bounds."""
    return typer.Option(min=least, max=most, help=help, **more)


def folder(help: str) -> Any:
    return typer.Option("--output", "-o", help=help)


# What a run is made of.
Data = Annotated[str | None, option("Rows: a file, a folder or a Hub name.", "--data", "-d")]
TemplateName = Annotated[str | None, option("Prompt format.", "--template", "-t")]
Columns = Annotated[list[str] | None, option("Column mapping, as instruction=question.", "--map")]
Turns = Annotated[
    str | None, option("Use 'all' exchanges of a conversation, or the 'first'.", show_default="all")
]
MaxLength = Annotated[
    int | None, number("Longest row, in tokens.", most=10**7, show_default="model.max_length, 1024")
]
Config = Annotated[Path | None, option("YAML file of settings.", "--config", "-c")]
Model = Annotated[
    str | None,
    option(
        "Hub name or folder. Default: microsoft/phi-2 on CUDA, else a small demo model.",
        "--model",
        "-m",
    ),
]
Settings = Annotated[list[str] | None, argument("KEY=VALUE settings, such as train.epochs=2.")]
Gpu = Annotated[
    str | None,
    option(
        "t4, v100, v100-32gb, v100-pcie, l4, a10, a10g, 3090, 4090, l40s, a100, "
        "a100-80gb, a100-80gb-pcie, h100, h100-pcie, or a memory, as 16GB.",
        show_default="this machine",
    ),
]

# What answers, and how.
Run = Annotated[str, argument("A run: its folder, its name or 'last'.")]
RunOrModel = Annotated[
    str, argument("A run (folder, name or 'last'), or a base model (folder or Hub name).")
]
BaseTemplate = Annotated[
    str | None, option("Template, for a base model. Default: reasoning.", "--template", "-t")
]
System = Annotated[str | None, option("Replace the template's system text.")]
Tokens = Annotated[int, option("End an answer after this many tokens.", "--max-new-tokens")]
Temperature = Annotated[float, option("0 takes the likeliest token; above 0 samples.")]
TopP = Annotated[float, option("Sample from the likeliest tokens of this total probability.")]
TopK = Annotated[int, option("Sample from this many of the likeliest tokens; 0: all.")]
Penalty = Annotated[float, option("Repetition penalty; 1 is none.")]
Seed = Annotated[int, option("Seed for sampling.")]
StopLoops = Annotated[bool, option("End an answer that repeats itself; nothing else changes.")]
Samples = Annotated[int, number("Answers per question; needs a --temperature.", most=1000)]
Vote = Annotated[bool, flag("Of --samples, keep the most frequent response.", "--vote")]
BatchSize = Annotated[int, number("Rows answered at a time.")]
By = Annotated[str | None, option("Columns to split the figures by, as task,language.")]
ForceTemplate = Annotated[bool, flag("Use the loaded template if the run's differs.", "--force")]

# How a command prints.
Json = Annotated[bool, flag("Print JSON.", "--json")]


def overrides(
    data: str | None,
    columns: list[str] | None,
    model: str | None,
    settings: list[str] | None = None,
    **named: object,
) -> list[Override]:
    """Turn the options and KEY=VALUE words into settings; later ones win.

    Args:
        named: values of other options by the setting's key, with `__` for its dot, as
            `model__max_length=512`. The option is named after the last part of the key.

    Raises:
        FasttuneError: a word or a mapping cannot be read.
    """
    from fasttune.config import Override, parse_override
    from fasttune.data.load import parse_columns

    keys = {
        **{key.replace("__", "."): value for key, value in named.items()},
        "data.train": data,
        "model.name": model,
    }
    options = {"data.train": "--data", "model.name": "--model"}
    given = []
    for key, value in keys.items():
        if value is not None:
            name = options.get(key) or "--" + key.rpartition(".")[2].replace("_", "-")
            given.append(Override(key, value, f"{name} {value}"))
    if data is not None:  # in place of the config's several sources
        given.append(Override("data.sources", (), f"--data {data}"))
    if columns:
        given.append(Override("data.columns", parse_columns(columns), f"--map {' '.join(columns)}"))
    return given + [parse_override(text) for text in settings or []]


def words(text: str | None) -> list[str]:
    """The parts of a comma-separated value."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
