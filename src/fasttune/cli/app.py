"""The root command: global options, and errors in three lines instead of a traceback."""

from __future__ import annotations

import difflib
import errno
import logging
import signal
import sys
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from fasttune import __version__, processes
from fasttune.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_INTERRUPTED, FasttuneError
from fasttune.logs import show
from fasttune.plugins.discovery import installed_plugins
from fasttune.quiet import STDOUT, drop_output, prepare_streams

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
    print(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON for standard output: what its encoding does not have is escaped, not replaced."""
    import json

    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def say(line: str) -> None:
    """What a person watches while the command works: a line on standard error."""
    logging.getLogger("fasttune").info(line)


def plugins(context: typer.Context, config: Path | None = None) -> Plugins:
    """The plugins under the global options; those that fail to load are named on standard error."""
    folder, files = context.obj["folder"], context.obj["files"]
    return installed_plugins(folder, config, files)


def ask(question: str) -> bool:
    """Whether a person says yes; without a terminal nobody does, and nothing is asked."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fasttune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    plugins_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of plugin files, all of which run.", show_default=False),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A plugin file; as often as you like."),
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
    context.obj = {"folder": plugins_dir, "files": plugin or ()}
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    show(level if processes.first() else logging.ERROR)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted, by Ctrl-C or
    SIGTERM."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_streams()
    arguments = _global_first(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    command = " ".join(["fasttune", *arguments])
    try:
        _refuse_empty_paths(arguments)
        status = _all_commands()(arguments, prog_name="fasttune", standalone_mode=False)
        sys.stdout.flush()
    except FasttuneError as error:
        if show_traceback:
            raise
        complain(error, command)
        status = EXIT_BAD_INPUT
    except TyperException as error:
        status = _complain(*_misused(error, arguments))
    except (KeyboardInterrupt, Abort):
        if processes.first():
            print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_output()
        status = EXIT_FAILURE
    except OSError as error:  # a full disk, a folder that may not be written
        if show_traceback:
            raise
        status = _failed(error, command)
    sys.exit(status or 0)


@cache
def _all_commands() -> Any:
    """typer makes them of their functions' signatures, each time it is asked."""
    return typer.main.get_command(app)


def _failed(error: OSError, command: str) -> int:
    """Tell what the operating system refused: standard output, or a file."""
    said = error.strerror or str(error)
    if error.filename == STDOUT:
        drop_output()
        _complain("cannot write to standard output", said, "send it where there is room for it")
        return EXIT_FAILURE
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        _complain(said, str(error.filename or command), "free some space, or write elsewhere")
        return EXIT_FAILURE
    return _complain(
        said, str(error.filename or command), "check the path, and who may read and write there"
    )


def _misused(error: TyperException, arguments: list[str]) -> tuple[str, str, str]:
    """What typer says of a command line that it cannot read, in our three parts."""
    at: Any = getattr(error, "ctx", None)
    where = at.command_path if at is not None else " ".join(["fasttune", *arguments])
    help_ = f"see: {where if at is not None else 'fasttune COMMAND'} --help"
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is on standard output by now
        return "no command is given", where, "give one of the commands above"
    told = error.message if hasattr(error, "possibilities") else error.format_message()
    told = " ".join(told.split()).rstrip(".")
    known = [
        *(option for parameter in at.command.params for option in parameter.opts),
        *getattr(at.command, "commands", ()),
    ] if at is not None else []  # fmt: skip
    wrong = getattr(error, "option_name", "") or (
        told.partition("'")[2].partition("'")[0] if told.startswith("No such command") else ""
    )
    options = getattr(getattr(error, "param", None), "opts", ())
    for place, word in enumerate(arguments):
        if word.partition("=")[0] in options:
            where += f" {' '.join(arguments[place : place + 1 + ('=' not in word)])}"
    close = difflib.get_close_matches(wrong, known, n=1)
    return told, where, f"did you mean '{close[0]}'? {help_}" if close else help_


def _global_first(arguments: list[str]) -> list[str]:
    """Move the global options to the front: people write them after the command as well."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest, words = arguments[:end], arguments[end:]
    front = []
    flags = ("--traceback", "--quiet", "-q", "--verbose", "-v")
    for option, values in (
        *((flag, 0) for flag in flags),
        ("--plugins-dir", 1),
        ("--plugin", 1),
    ):
        at = 0
        while at < len(rest):
            if rest[at] == option or rest[at].startswith(f"{option}="):
                taken = 1 + values * (rest[at] == option)
                if at + taken > len(rest):  # left behind it would take the command for its value
                    return rest[at:]
                front += rest[at : at + taken]
                del rest[at : at + taken]
            else:
                at += 1
    return front + rest + words


def complain(error: FasttuneError, command: str = "the command") -> None:
    """Tell an error in its three lines on standard error."""
    _complain(error.message, error.where or command, error.hint, error)


PATHS = (
    "--plugins-dir", "--plugin", "--config", "-c", "--file", "--html", "--out", "--output", "-o",
)  # fmt: skip


def _refuse_empty_paths(arguments: list[str]) -> None:
    """An empty path, as a shell makes of an unset variable, would be the folder one stands in."""
    for option, value in zip_longest(arguments, arguments[1:]):
        if (option in PATHS and value == "") or option in [f"{path}=" for path in PATHS]:
            raise FasttuneError(
                "an empty name is no path", f"{option} ''", "give a path, or leave the option out"
            )


def _complain(message: str, where: str, hint: str, error: FasttuneError | None = None) -> int:
    if not processes.speaks(error):
        return EXIT_BAD_INPUT
    who = "" if processes.first() else f"process {processes.rank()}: "
    lines = [f"error: {who}{message}"]
    hint = hint or "see: fasttune COMMAND --help; --traceback shows where it failed"
    for label, text in (("where", where), ("what to do", hint)):
        for number, line in enumerate(text.splitlines()):
            lines.append(f"  {f'{label}: ' if number == 0 else '  '}{line}")
    with suppress(OSError):  # nobody can be told
        print("\n".join(lines), file=sys.stderr)
    return EXIT_BAD_INPUT
