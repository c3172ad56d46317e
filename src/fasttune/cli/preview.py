"""Commands: preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.options import Columns, Config, Data, Model, TemplateName, Turns, overrides
from fasttune.errors import FasttuneError
from fasttune.runs import find_run


@app.command()
def preview(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run, for its format, rows and model: its folder, its name or 'last'.",
            show_default=False,
        ),
    ] = None,
    template: TemplateName = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    row: Annotated[int, typer.Option(min=1, help="First row to show, from 1.")] = 1,
    rows: Annotated[int, typer.Option(min=1, max=10**6, help="How many rows to show.")] = 1,
    system: Annotated[str | None, typer.Option(help="System text in place of the row's.")] = None,
    turns: Turns = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**7,
            help="Longest row, in tokens; without it model.max_length.",
        ),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show the token ids.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page instead.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --html.")] = False,
) -> None:
    """Show what the model sees of a row: sections, tokens, and which of them are trained.

    Settings come from the defaults, then RUN or --config, then the command line.
    """
    from fasttune.config import Override, load_config
    from fasttune.data.load import load_divided
    from fasttune.files import require_free, write_text
    from fasttune.inspection import preview as views
    from fasttune.inspection.preview import to_html
    from fasttune.inspection.preview_terminal import TerminalPreview
    from fasttune.models.tokenizer import load_tokenizer

    if html and json:
        raise FasttuneError(
            "--html and --json exclude each other", f"--html {html}", "give one of them"
        )
    if html is not None:
        require_free(html, "--html", force)
    if run is not None and (template or config) is not None:
        raise FasttuneError(
            "a run has its own format and settings",
            f"fasttune preview {run}",
            "leave out --template and --config, or the run",
        )
    found = None if run is None else find_run(run)
    given = overrides(data, columns, model, [], template=template, system=system)
    if max_length is not None:
        given.append(Override("model.max_length", max_length, f"--max-length {max_length}"))
    if turns is not None:
        given.append(Override("data.turns", turns, f"--turns {turns}"))
    settings = load_config(config, given, base=found.config if found else None)
    provided = plugins(context, config)
    chosen = (
        found.kept_template(provided)[0] if found else provided.template(settings.template)
    ).with_system(settings.system)
    loaded = load_divided(settings.data, chosen).sources[0]
    if loaded.bad_rows:
        print(
            f"warning: {loaded.source}: {loaded.bad_rows} unusable "
            f"row{'s' * (loaded.bad_rows != 1)} left out of the count",
            file=sys.stderr,
        )
    picked = views.pick(loaded, row, rows)
    tokenizer = load_tokenizer(settings.model.name, chosen.end)
    name = views.short_name(settings.model.name or tokenizer.name_or_path)
    shown = [
        views.preview_row(
            chosen,
            picked_row,
            tokenizer,
            number=number,
            model=name,
            max_length=settings.model.max_length,
        )
        for number, picked_row in picked
    ]
    if json:
        print_json([one.as_dict() for one in shown])
    elif html:
        write_text(html, to_html(shown, ids))
        print(html)
    else:
        for number, one in enumerate(shown):
            console().print(*([""] if number else []), TerminalPreview(one, ids), sep="\n")
