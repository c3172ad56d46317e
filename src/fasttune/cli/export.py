"""`fasttune export` and `serve`: a run as other programs load it, or behind a server."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, say, table
from fasttune.cli.options import argument, flag, folder, number, option
from fasttune.errors import EXIT_FAILURE, FasttuneError
from fasttune.terminal import console, echo

if TYPE_CHECKING:
    from fasttune.exports.verify import Exported
    from fasttune.plugins.registry import Plugins


@app.command()
def export(
    context: typer.Context,
    run: Annotated[str | None, argument("A run (folder, name or 'last') or a checkpoint.")] = None,
    to: Annotated[str, option("Form of the export; --list shows all.")] = "merged",
    output: Annotated[Path | None, folder("Folder. Default: exports/FORM in the run.")] = None,
    into: Annotated[
        str | None, option("Merge into the 'original' weights or the 'dequantized' ones.")
    ] = None,
    quant: Annotated[str | None, option("Number format, for forms that have several.")] = None,
    more: Annotated[
        list[str] | None, option("Another option of the form, as NAME=VALUE.", "--option")
    ] = None,
    rows: Annotated[int, number("Held-out rows to verify with.")] = 8,
    no_verify: Annotated[bool, flag("Do not compare export and run.", "--no-verify")] = False,
    push: Annotated[
        str | None, option("Upload to this Hub repository, private if new.", metavar="OWNER/NAME")
    ] = None,
    public: Annotated[bool, flag("Let --push use a public repository.", "--public")] = False,
    force: Annotated[bool, flag("Replace an earlier export.", "--force")] = False,
    list_: Annotated[bool, flag("List the forms.", "--list")] = False,
    as_json: options.Json = False,
) -> None:
    """Export a run for other programs, and verify that it answers as the run does.

    The exit status is 1 if the export differs from the run by more than the bounds.
    """
    loaded = plugins(context)
    if list_:
        _list(loaded, as_json)
        return
    if run is None:
        raise FasttuneError("no run is given", "fasttune export RUN", "name a run, or 'last'")
    if public and push is None:
        raise FasttuneError("nothing is pushed", "--public", "give --push OWNER/NAME, too")
    chosen = {"into": into, "quant": quant, **_parsed(more or [])}
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
        **{name: value for name, value in chosen.items() if value is not None},
    )
    pushed = {"pushed": done.pushed} if done.pushed else {}
    if as_json:
        print_json({"export": str(done.folder), **pushed, **done.as_dict()})
    else:
        _show(done)
        if done.pushed:
            echo(f"pushed: {done.pushed}")
    if done.verification is not None and not done.verification.verified:
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
    checked = done.verification
    if checked is not None:
        for name, value, bound in checked.lines():
            out.print(f"{name:<14} {value:<44} ({bound})")
        for failure in checked.failures:
            out.print(f"differs: {failure}", style="red")
        out.print(
            "verified" if checked.verified else "NOT verified: the export differs from its run",
            style="green" if checked.verified else "bold red",
        )
    else:
        why = str(done.obstacle) if done.obstacle is not None else "--no-verify"
        out.print(f"NOT verified: {why}", style="bold red")
    echo(f"  {done.folder}")


def _list(loaded: Plugins, as_json: bool) -> None:
    forms = [(exporter, provider) for exporter, provider in loaded.exporters.values()]
    if as_json:
        print_json(
            [
                {
                    "name": exporter.name,
                    "description": exporter.description,
                    "options": {name: list(values) for name, values in exporter.options.items()},
                    "plugin": provider.name,
                }
                for exporter, provider in forms
            ]
        )
        return
    rows = []
    for exporter, provider in forms:
        given = [f"--{n} {'|'.join(v) or 'TEXT'}" for n, v in exporter.options.items()]
        rows.append((exporter.name, exporter.description, " ".join(given), provider.name))
    console().print(table(("form", "what it is", "options", "plugin"), rows))


@app.command()
def serve(
    context: typer.Context,
    run: options.Run,
    engine: Annotated[str, option("The server: transformers, llamacpp or vllm.")] = "transformers",
    host: Annotated[str, option("Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("Port to listen on; 0: any free one.", 0, 65535)] = 8000,
) -> None:
    """Serve a run with an OpenAI-compatible API, until Ctrl-C.

    fasttune exports the run first, unless an export exists, and compares the server's prompts with
    the run's.
    """
    from fasttune.serving.serve import serve as serve_run

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs ignore it
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with serve_run(run, engine, host=host, port=port, plugins=plugins(context)) as server:
            echo(f"{server.model} on {engine}: {server.proof}")
            echo(f"base URL: {server.url}")
            echo(server.curl)
            say("Ctrl-C ends it")
            server.wait()
    except KeyboardInterrupt:
        say("stopped")
