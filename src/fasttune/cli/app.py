"""The root command: global options, and errors in three lines instead of a traceback."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from fasttune import __version__, api
from fasttune.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_INTERRUPTED, FasttuneError
from fasttune.logs import show

if TYPE_CHECKING:
    from rich.console import Console

    from fasttune.plugins.registry import Plugins

app = typer.Typer(
    name="fasttune",
    help="Teach a small language model a prompt format.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def console() -> Console:
    """Standard output. Without a terminal it is 120 columns wide, so that tables stay readable in
    a log."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output, for scripts."""
    import json

    print(json.dumps(value, ensure_ascii=False, indent=2))


def say(line: str) -> None:
    """What a person watches while the command works: a line on standard error."""
    logging.getLogger("fasttune").info(line)


def plugins(context: typer.Context, config: Path | None = None) -> Plugins:
    """The plugins under the global options; those that fail to load are named on standard error."""
    return api.load_plugins(context.obj["plugins_dir"], config)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fasttune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    plugins_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of plugin files, searched first.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the libraries print, too.")
    ] = False,
    traceback: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = {"plugins_dir": plugins_dir}
    show(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    arguments = _global_first(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    try:
        status = app(arguments, standalone_mode=False)
    except FasttuneError as error:
        if show_traceback:
            raise
        _complain(error.message, error.where, error.hint)
        status = EXIT_BAD_INPUT
    except TyperException as error:
        _complain(error.format_message(), "", "see: fasttune --help, or fasttune COMMAND --help")
        status = EXIT_BAD_INPUT
    except (KeyboardInterrupt, Abort):
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        status = EXIT_FAILURE
    except OSError as error:  # a full disk, a folder that may not be written
        if show_traceback:
            raise
        _complain(error.strerror or str(error), str(error.filename or ""), "")
        status = EXIT_FAILURE
    sys.exit(status or 0)


def _global_first(arguments: list[str]) -> list[str]:
    """Move the global options to the front: people write them after the command as well."""
    rest = list(arguments)
    front = []
    flags = ("--traceback", "--quiet", "-q", "--verbose", "-v")
    for option, values in (*((flag, 0) for flag in flags), ("--plugins-dir", 1)):
        for at, word in enumerate(rest):
            if word == option or word.startswith(f"{option}="):
                taken = 1 + values * (word == option)
                front += rest[at : at + taken]
                del rest[at : at + taken]
                break
    return front + rest


def _complain(message: str, where: str, hint: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    for label, text in (("where", where), ("what to do", hint)):
        for number, line in enumerate(text.splitlines()):
            print(f"  {f'{label}: ' if number == 0 else '  '}{line}", file=sys.stderr)
