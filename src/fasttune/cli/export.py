"""`fasttune export`: hand a run to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.errors import EXIT_FAILURE, FasttuneError

if TYPE_CHECKING:
    from fasttune.exports.verify import Exported
    from fasttune.plugins.registry import Plugins


@app.command()
def export(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(help="A run: its folder, its name or 'last'.", show_default=False),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="Form of the export; --list shows all.")
    ] = "merged",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to make. Default: exports/FORM in the run."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            help="Merge into the 'original' weights, or the 'dequantized' ones training saw."
        ),
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="Number format, for forms that have several.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Another option of the form, as NAME=VALUE."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=10**6, help="Held-out rows to verify with.")] = 8,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not hold the export against the run.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Upload the verified export to a repository of the Hub, private if it is new.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let --push make, or write to, a public repository.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the forms.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a run for other programs, and prove that it behaves as the run did.

    The exit status is 1 where the export differs from the run by more than its bounds, or where
    it could not be verified.
    """
    loaded = plugins(context)
    if list_:
        _list(loaded, as_json)
        return
    if run is None:
        raise FasttuneError("no run is given", "fasttune export RUN", "name a run, or 'last'")
    if public and push is None:
        raise FasttuneError("nothing is pushed", "--public", "give --push OWNER/NAME, too")
    named = {"into": into, "quant": quant}
    chosen = {name: value for name, value in named.items() if value is not None}
    from fasttune.exports.export import export as export_run

    done = export_run(
        run,
        to,
        output=output,
        verify=not no_verify,
        force=force,
        rows=rows,
        push=push,
        public=public,
        plugins=loaded,
        **chosen | _parsed(options or []),
    )
    pushed = {"pushed": done.pushed} if done.pushed else {}
    if as_json:
        print_json({"export": str(done.folder), **pushed, **done.as_dict()})
    else:
        _show(done)
        if done.pushed:
            print(f"pushed: {done.pushed}")
    if done.failures:
        raise typer.Exit(EXIT_FAILURE)


def _parsed(options: list[str]) -> dict[str, str]:
    pairs = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise FasttuneError(f"'{text}' sets nothing", "--option", "write --option NAME=VALUE")
        pairs[name] = value
    return pairs


def _show(done: Exported) -> None:
    out = console()
    found = done.verification
    if found is not None:
        for name, value, bound in found.lines():
            out.print(f"{name:<14} {value:<44} ({bound})", markup=False)
        for failure in found.failures:
            out.print(f"differs: {failure}", style="red", markup=False)
        out.print(
            "verified" if found.verified else "NOT verified: the export differs from its run",
            style="green" if found.verified else "bold red",
        )
    else:
        why = str(done.obstacle) if done.obstacle is not None else "--no-verify"
        out.print(f"NOT verified: {why}", style="bold red", markup=False)
    out.print(f"  {done.folder}", markup=False, soft_wrap=True)


def _list(loaded: Plugins, as_json: bool) -> None:
    from rich.table import Table

    forms = [(exporter, provider) for exporter, provider in loaded.exporters.values()]
    if as_json:
        print_json(
            [
                {
                    "name": exporter.name,
                    "description": exporter.description,
                    "options": {
                        option: list(values) for option, values in exporter.options.items()
                    },
                    "plugin": provider.name,
                }
                for exporter, provider in forms
            ]
        )
        return
    table = Table("form", "what it is", "options", "plugin", box=None)
    for exporter, provider in forms:
        options = [
            f"--{name} {'|'.join(values) or 'TEXT'}" for name, values in exporter.options.items()
        ]
        table.add_row(exporter.name, exporter.description, " ".join(options), provider.name)
    console().print(table)
