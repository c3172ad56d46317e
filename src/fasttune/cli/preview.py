"""Commands: preview."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.errors import FasttuneError


@app.command()
def preview(
    context: typer.Context,
    template: Annotated[str, typer.Option("--template", "-t", help="Template to render with.")],
    data: Annotated[
        str | None, typer.Option(help="File or Hub data set; without it the shipped rows.")
    ] = None,
    row: Annotated[int, typer.Option(min=1, help="First row to show, from 1.")] = 1,
    rows: Annotated[int, typer.Option(min=1, max=10**6, help="How many rows to show.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer to use; without it the default model.")
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="OURS=THEIRS", help="Rename a column.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System text in place of the row's.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**7,
            help="Longest row, in tokens; without it the default of model.max_length.",
        ),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show the token ids.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page instead.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --html.")] = False,
) -> None:
    """Show what the model sees of a row: sections, tokens, and which of them are trained."""
    from fasttune.config import ModelConfig
    from fasttune.data.load import load, parse_columns, shipped
    from fasttune.files import require_free, write_text
    from fasttune.inspection import preview as views
    from fasttune.inspection.preview_html import to_html
    from fasttune.inspection.preview_terminal import TerminalPreview
    from fasttune.models.tokenizer import load_tokenizer

    if html and json:
        raise FasttuneError(
            "--html and --json exclude each other", f"--html {html}", "give one of them"
        )
    if html is not None:
        require_free(html, "--html", force)
    chosen = plugins(context).template(template)
    source = shipped("train") if data is None else data
    loaded = load(source, chosen, parse_columns(map_ or []), system=system)
    if loaded.bad_rows:
        print(
            f"warning: {loaded.source}: {loaded.bad_rows} unusable "
            f"row{'s' * (loaded.bad_rows != 1)} left out of the count",
            file=sys.stderr,
        )
    picked = views.pick(loaded, row, rows)
    tokenizer = load_tokenizer(model)
    name = views.short_name(model or tokenizer.name_or_path)
    shown = [
        views.preview(
            chosen,
            segments,
            tokenizer,
            number=number,
            model=name,
            max_length=max_length or ModelConfig().max_length,
        )
        for number, segments in picked
    ]
    if json:
        print_json([one.as_dict() for one in shown])
    elif html:
        write_text(html, to_html(shown, ids))
        print(html)
    else:
        for number, one in enumerate(shown):
            console().print(*([""] if number else []), TerminalPreview(one, ids), sep="\n")
