"""`fasttune init` and `fasttune config`: a config to begin with, and the one that would be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasttune.cli.app import app, plugins, print_json, say
from fasttune.cli.options import (
    Columns,
    Config,
    Data,
    Gpu,
    Model,
    Settings,
    TemplateName,
    overrides,
)
from fasttune.errors import FasttuneError

NAME = "fasttune.yaml"


@app.command()
def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    template: TemplateName = None,
    data: Data = None,
    columns: Columns = None,
    model: Model = None,
    gpu: Gpu = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a config to begin with, fasttune.yaml: every setting, with its default and its meaning.

    Of --data it takes the columns, the template and a batch that fits, and says so.
    """
    from fasttune.config import commented, flatten, load_config
    from fasttune.files import require_free, write_text

    target = folder / NAME
    require_free(target, "fasttune init", force)
    if data is None and (columns or gpu) is not None:
        raise FasttuneError(
            "a mapping, and a batch that fits, are of rows",
            "--map" if columns else f"--gpu {gpu}",
            "give --data, too",
        )
    given = load_config(None, overrides(data, columns, model, [], template=template))
    if data is not None:
        from fasttune.proposal import propose

        made = propose(given, plugins(context), template, gpu)
        given = made.config
        for line in made.lines:
            say(line)
    text = commented(given, f"fasttune run --config {target}")
    write_text(target, text)
    changed = flatten(given.as_dict())
    print(target)
    if data is not None:
        names = ("template", "model.name", "data.train", "data.columns", "train.batch_size")
        for name in names:
            say(f"{name}: {changed[name]}")
    say(f"check its rows:  fasttune data -c {target}\ntrain:           fasttune run -c {target}")


@app.command()
def config(
    settings: Settings = None,
    template: TemplateName = None,
    data: Data = None,
    columns: Columns = None,
    file: Config = None,
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the settings that a run would have: the defaults, then --config, then the command line.

    It is YAML that --config takes.
    """
    from fasttune.config import dump_config, load_config

    chosen = overrides(data, columns, model, settings or [], template=template)
    resolved = load_config(file, chosen)
    if as_json:
        print_json(resolved.as_dict())
    else:
        print(dump_config(resolved), end="")
