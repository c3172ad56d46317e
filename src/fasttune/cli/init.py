"""`fasttune init` and `fasttune config`: write a config, and print the resolved settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, say
from fasttune.cli.options import argument, expand, flag
from fasttune.errors import FasttuneError
from fasttune.terminal import echo

NAME = "fasttune.yaml"
PROPOSED = (
    *("template", "model.name", "data.train", "data.columns"),
    *("train.batch_size", "train.learning_rate", "train.epochs", "train.warmup_steps"),
)


@app.command()
def init(
    context: typer.Context,
    folder: Annotated[Path, argument("Folder to write to.")] = Path(),
    template: options.TemplateName = None,
    data: options.Data = None,
    columns: options.Columns = None,
    model: options.Model = None,
    gpu: options.Gpu = None,
    force: Annotated[bool, flag("Replace the file.", "--force")] = False,
) -> None:
    """Write fasttune.yaml: every setting, with its default and its meaning.

    With --data it proposes the columns, the template, a batch that fits, the learning rate, the
    epochs and the warm-up, and prints them.
    """
    from fasttune.config import commented, flatten
    from fasttune.files import require_free, write_text

    target = folder / NAME
    require_free(target, "fasttune init", force)
    if data is None and (columns or gpu) is not None:
        where = "--map" if columns else f"--gpu {gpu}"
        raise FasttuneError("--map and --gpu need rows", where, "give --data, too")
    settings = options.Settings(template, data, columns, model=model).load()
    if data is not None:
        from fasttune.proposal import propose

        settings, lines = propose(settings, plugins(context), gpu)
        for line in lines:
            say(line)
    write_text(target, commented(settings, f"fasttune run --config {target}"))
    echo(target)
    if data is not None:
        values = flatten(settings.as_dict())
        for name in PROPOSED:
            say(f"{name}: {values[name]}")
    say(f"check its rows:  fasttune data -c {target}\ntrain:           fasttune run -c {target}")


@app.command()
@expand
def config(settings: options.AllSettings, as_json: options.Json = False) -> None:
    """Print the settings of a run as YAML: the defaults, then --config, then the command line."""
    from fasttune.config import dump_config

    resolved = settings.load()
    if as_json:
        print_json(resolved.as_dict())
    else:
        echo(dump_config(resolved), end="")
