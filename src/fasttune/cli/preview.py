"""`fasttune preview`: the tokens of a row, trained or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.options import argument, expand, flag, number, option
from fasttune.errors import FasttuneError
from fasttune.runs import find_run


@app.command()
@expand
def preview(
    context: typer.Context,
    settings: options.Settings,
    run: Annotated[
        str | None, argument("A run (folder, name or 'last'), for its format, rows and model.")
    ] = None,
    row: Annotated[int, number("First row to show, from 1.", most=10**9)] = 1,
    rows: Annotated[int, number("How many rows to show.")] = 1,
    system: options.System = None,
    turns: options.Turns = None,
    max_length: options.MaxLength = None,
    ids: Annotated[bool, flag("Show the token ids.", "--ids")] = False,
    html: Annotated[Path | None, option("Write an HTML page instead.", metavar="FILE")] = None,
    as_json: options.Json = False,
    force: Annotated[bool, flag("Replace the file of --html.", "--force")] = False,
) -> None:
    """Show a row as the model sees it: sections, tokens, and which of them are trained.

    Settings come from the defaults, then RUN or --config, then the command line.
    """
    from fasttune.config import load_config
    from fasttune.files import require_free, write_text
    from fasttune.inspection.preview import TerminalPreview, preview_html, preview_rows

    if html and as_json:
        raise FasttuneError(
            "--html and --json exclude each other", f"--html {html}", "give one of them"
        )
    if html is not None:
        require_free(html, "--html", force)
    if run is not None and (settings.template or settings.config) is not None:
        raise FasttuneError(
            "a run has its own format and settings",
            f"fasttune preview {run}",
            "leave out --template and --config, or the run",
        )
    kept = None if run is None else find_run(run)
    given = settings.overrides(
        {"system": system, "model.max_length": max_length, "data.turns": turns}
    )
    config = load_config(settings.config, given, base=kept.config if kept else None)
    loaded = plugins(context, settings.config)
    shown = kept.kept_template(loaded)[0] if kept else loaded.template(config.template)
    source = kept if settings.data is None else None
    previews = preview_rows(config, shown.with_system(config.system), row, rows, source)
    if as_json:
        print_json([each.as_dict() for each in previews])
    elif html:
        write_text(html, preview_html(previews, ids))
        print(html)
    else:
        for index, each in enumerate(previews):
            console().print(*([""] if index else []), TerminalPreview(each, ids), sep="\n")
