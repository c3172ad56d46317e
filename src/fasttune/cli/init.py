"""`fasttune init` and `fasttune config`: write a config, and print the resolved settings."""

from __future__ import annotations

import shlex
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
    arguments: Annotated[
        list[str] | None,
        argument(
            "Folder to write to, by default the current one. Settings, such as train.epochs=2.",
            metavar="FOLDER|KEY=VALUE",
            show_default=False,
        ),
    ] = None,
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

    folders, settings = options.separate(arguments)
    target = Path(options.one_name(folders) or "") / NAME
    require_free(target, "fasttune init", force)
    chosen = options.AllSettings(template, data, columns, None, model, settings).load()
    has_rows = chosen.data.train is not None
    if not has_rows and (columns or gpu) is not None:
        where = "--map" if columns else f"--gpu {gpu}"
        raise FasttuneError("--map and --gpu need rows", where, "give --data, too")
    if has_rows:
        from fasttune.proposal import propose

        chosen, lines = propose(chosen, plugins(context), gpu)
        for line in lines:
            say(line)
    given = [("--plugins-dir", context.obj["folder"])]
    given += [("--plugin", file) for file in context.obj["files"]]
    given += [("--config", target)]
    with_config = shlex.join(str(word) for pair in given if pair[1] for word in pair)
    write_text(target, commented(chosen, f"fasttune run {with_config}"))
    echo(target)
    if has_rows:
        values = flatten(chosen.as_dict())
        for name in PROPOSED:
            if values[name] is not None:
                say(f"{name}: {values[name]}")
    say(
        f"check its rows:  fasttune data {with_config}\ntrain:           fasttune run {with_config}"
    )


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
