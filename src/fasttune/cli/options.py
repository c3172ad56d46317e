"""Options that several commands share, and short ways to declare the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from fasttune.config import Override, RunConfig

MANY = 10**6


def option(help: str, *names: str, **more: Any) -> Any:
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


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of its parameters that are dataclasses.

    The last item of a field's `Annotated` type is the option, or the option's help. The default of
    the parameter holds the defaults of its fields.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters[name] = parameter.default, hints[name]
            continue
        defaults = groups[name]() if parameter.default is parameter.empty else parameter.default
        for field, hint in get_type_hints(groups[name], include_extras=True).items():
            if isinstance(help := hint.__metadata__[-1], str):
                hint = Annotated[hint, option(help)]
            parameters[field] = getattr(defaults, field), hint

    @wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    kind = inspect.Parameter.KEYWORD_ONLY
    expanded.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, kind, default=default, annotation=hint)
            for name, (default, hint) in parameters.items()
        ]
    )
    return expanded


# What a run is made of.
Data = Annotated[str | None, option("Rows: a file, a folder or a Hub name.", "--data", "-d")]
TemplateName = Annotated[
    str | None,
    option(
        "Prompt format: alpaca, chatml, multilingual, reasoning, another one that `fasttune "
        "templates list` shows, or a YAML file. Default: chatml, reasoning or alpaca, by the rows.",
        "--template",
        "-t",
    ),
]
Columns = Annotated[
    list[str] | None,
    option("Column mapping, as instruction=question.", "--map", metavar="OURS=THEIRS"),
]
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
Gpu = Annotated[
    str | None,
    option(
        "t4, v100, v100-32gb, v100-pcie, l4, a10, a10g, 3090, 4090, l40s, a100, "
        "a100-80gb, a100-80gb-pcie, h100, h100-pcie, or a memory, as 16GB.",
        show_default="this machine",
    ),
]


@dataclass(frozen=True)
class Settings:
    """The options that settings come from; the command line counts more than --config."""

    template: TemplateName = None
    data: Data = None
    columns: Columns = None
    config: Config = None
    model: Model = None

    def overrides(self, more: Mapping[str, object] | None = None) -> list[str | Override]:
        """The settings that the options give.

        Args:
            more: other options' values by the setting's key, whose last part names the option.
        """
        from fasttune.config import Override
        from fasttune.data.load import parse_columns

        own = {"template": self.template, "data.train": self.data, "model.name": self.model}
        options = {"data.train": "data", "model.name": "model"}
        given: list[str | Override] = []
        for key, value in {**own, **(more or {})}.items():
            if value is not None:
                name = options.get(key) or key.rpartition(".")[2].replace("_", "-")
                given.append(Override(key, value, f"--{name} {value}"))
        if self.data is not None:  # in place of the config's several sources
            given.append(Override("data.sources", (), f"--data {self.data}"))
        if self.columns:
            mapping = parse_columns(self.columns)
            given.append(Override("data.columns", mapping, f"--map {' '.join(self.columns)}"))
        return given

    def load(self) -> RunConfig:
        from fasttune.config import load_config

        return load_config(self.config, self.overrides())


ReadSettings = Annotated[
    list[str] | None,
    argument(
        "Settings for reading the rows, such as data.skip_bad_rows=true.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class AllSettings(Settings):
    """With any setting as KEY=VALUE, which counts most."""

    settings: Annotated[
        list[str] | None,
        argument("Settings, such as train.epochs=2.", metavar="KEY=VALUE", show_default=False),
    ] = None

    def overrides(self, more: Mapping[str, object] | None = None) -> list[str | Override]:
        return [*super().overrides(more), *(self.settings or [])]


# What answers, and how.
Run = Annotated[str, argument("A run: its folder, its name or 'last'.", metavar="RUN")]
RunOrModel = Annotated[
    str,
    argument(
        "A run (folder, name or 'last'), the folder of a checkpoint, or a base model (folder or "
        "Hub name).",
        metavar="RUN",
    ),
]
BaseTemplate = Annotated[
    str | None, option("Template, for a base model. Default: reasoning.", "--template", "-t")
]
System = Annotated[str | None, option("Replace the template's system text.")]
Samples = Annotated[int, number("Answers per question; needs a --temperature.", most=1000)]
Vote = Annotated[bool, flag("Of --samples, keep the most frequent response.", "--vote")]
By = Annotated[str | None, option("Columns to split the figures by, as task,language.")]
BatchSize = Annotated[int, number("Rows answered at a time.")]
ForceTemplate = Annotated[bool, flag("Use the loaded template if the run's differs.", "--force")]

# How a command prints.
Json = Annotated[bool, flag("Print JSON.", "--json")]


def separate(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Names, such as files and runs, and KEY=VALUE settings; the path of a file or a run is
    a name."""
    names = [
        word
        for word in arguments or []
        if "=" not in word or Path(word).exists() or Path("runs", word).exists()
    ]
    return names, [word for word in arguments or [] if word not in names]


def one_name(names: list[str], option: str | None = None) -> str | None:
    """The one name among the arguments and an option's value, if there is any."""
    if len(names) + (option is not None) > 1:
        raise FasttuneError(
            "more than one is given", " ".join(filter(None, [*names, option])), "give one"
        )
    return names[0] if names else option


def words(text: str | None) -> list[str]:
    """The parts of a comma-separated value."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
