"""The root command: global options, and errors in three lines instead of a traceback."""

from __future__ import annotations

import difflib
import errno
import logging
import shlex
import signal
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from fasttune import __version__, processes
from fasttune.cli.options import flag, option
from fasttune.errors import EXIT_FAILURE, EXIT_INTERRUPTED, FasttuneError, reason
from fasttune.plugins.discovery import installed_plugins
from fasttune.terminal import (
    STDOUT,
    console,
    drop_output,
    echo,
    json_text,
    prepare_streams,
    show_log,
    visible,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fasttune.plugins.registry import Plugins

app = typer.Typer(
    name="fasttune",
    help="Teach a small language model a prompt format.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[RenderableType]], right: Container[str] = ()
) -> Table:
    """A table of text without lines. Long cells are folded.

    Args:
        headings: the first line, left out if all are empty.
        right: the headings of the columns to align on the right.
    """
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for heading in headings:
        side = "right" if heading in right else "left"
        grid.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        grid.add_row(*row)
    return grid


def facts(values: Mapping[str, object]) -> Table:
    """Names and values, one pair a line."""
    from rich.text import Text

    return table(("", ""), [(Text(name, "bold"), str(value)) for name, value in values.items()])


def print_json(value: Any) -> None:
    echo(json_text(value, indent=2))


def say(line: str) -> None:
    """Print progress: a line on standard error."""
    logging.getLogger("fasttune").info(line)


def plugins(context: typer.Context, config: Path | None = None) -> Plugins:
    """Load the plugins by the global options, and log those that fail to load."""
    return installed_plugins(context.obj["folder"], config, context.obj["files"])


def ask(question: str) -> bool:
    """Ask on the terminal. Without a terminal the answer is no."""
    on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    return on_terminal and typer.confirm(visible(question), err=True)


def _version(show: bool) -> None:
    if show:
        echo(f"fasttune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    plugins_dir: Annotated[Path | None, option("Folder of plugin files; all of them run.")] = None,
    plugin: Annotated[
        list[Path] | None, option("A plugin file; may be repeated.", metavar="FILE")
    ] = None,
    quiet: Annotated[bool, flag("Print only warnings and errors.", "--quiet", "-q")] = False,
    verbose: Annotated[bool, flag("Print library messages, too.", "--verbose", "-v")] = False,
    traceback: Annotated[bool, flag("Show the traceback of an error.", "--traceback")] = False,
    version: Annotated[
        bool, option("Show the version.", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"folder": plugins_dir, "files": plugin or ()}
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    show_log(level if processes.first() else logging.ERROR)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    The status is 0 for done, 1 for failed, 2 for bad input and 130 for interrupted (Ctrl-C or
    SIGTERM).
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_streams()
    arguments = _global_first(sys.argv[1:] if arguments is None else arguments)
    command = " ".join(["fasttune", *arguments])
    try:
        _refuse_empty_paths(arguments)
        with suppress(OSError):  # it was deleted
            str(Path.cwd()).encode()  # files of a run name it
        status = all_commands()(arguments, prog_name="fasttune", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        status = complain(_usage_error(error, arguments), command)
    except (KeyboardInterrupt, Abort):
        if processes.first():
            echo("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except UnicodeError as error:
        if "--traceback" in arguments:
            raise
        status = complain(_undecodable(error), command)
    except BrokenPipeError:
        drop_output()
        status = EXIT_FAILURE
    except (FasttuneError, OSError) as error:
        if "--traceback" in arguments:
            raise
        status = complain(_refused(error) if isinstance(error, OSError) else error, command)
    sys.exit(status or 0)


ORDER = (
    *("init", "config", "data", "preview", "plan", "run", "runs"),
    *("generate", "answer", "chat", "evaluate", "compare", "export", "serve"),
    *("templates", "plugins", "doctor", "bench"),
)
"""The commands as one uses them."""


@cache
def all_commands() -> Any:
    """Build the commands from their functions' signatures, once.

    A command's summary is the first paragraph of its help, and flags show no type.
    """
    root: Any = typer.main.get_command(app)
    root.commands = {name: root.commands[name] for name in ORDER}
    commands = [root]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        paragraphs = [" ".join(text.split()) for text in (command.help or "").split("\n\n")]
        command.short_help, command.help = paragraphs[0], "\n\n".join(paragraphs)
        for parameter in (*command.params, command.get_help_option(typer.Context(command))):
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
    return root


def _refused(error: OSError) -> FasttuneError:
    """What the operating system refused: writing to standard output, or a file."""
    message = error.strerror or str(error)
    if error.filename == STDOUT:
        drop_output()
        hint = "redirect it to a disk with space"
        refused = FasttuneError("cannot write to standard output", message, hint)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, or write elsewhere"
        refused = FasttuneError(message, str(error.filename or ""), hint)
    else:
        hint = "check the path and its permissions"
        return FasttuneError(message, str(error.filename or ""), hint)
    refused.exit_status = EXIT_FAILURE
    return refused


def _undecodable(error: UnicodeError) -> FasttuneError:
    """The error for a name that is not UTF-8, or for text in a locale without UTF-8."""
    if isinstance(error, UnicodeEncodeError):
        place = ascii(error.object[max(0, error.start - 80) : error.end + 20])
        hint = "rename the file or folder; if the name is right, set PYTHONUTF8=1"
        return FasttuneError("a name or a text is not UTF-8", place, hint)
    hint = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
    return FasttuneError("a file cannot be read in this locale", reason(error), hint)


def _usage_error(error: TyperException, arguments: list[str]) -> FasttuneError:
    """Turn typer's error about a command line into message, place and hint."""
    context: Any = getattr(error, "ctx", None)
    if context is None:
        return FasttuneError(_sentence(error), hint="see: fasttune COMMAND --help")
    where, command = context.command_path, context.command
    if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help
        return FasttuneError("no command is given", where, "give one of the commands above")
    if where == "fasttune generate" and "--file" in [a.partition("=")[0] for a in arguments]:
        words = [a.removeprefix("--file=") for a in arguments if a != "--file"]
        words[words.index("generate")] = "answer"
        hint = f"use: fasttune {shlex.join(words)}"
        return FasttuneError("generate answers one question", where, hint)
    message, hint = _sentence(error), f"see: {where} --help"
    misspelt = getattr(error, "option_name", "")
    if message.startswith("No such command"):
        misspelt = message.partition("'")[2].partition("'")[0]
    options = [name for parameter in command.params for name in parameter.opts]
    commands = getattr(command, "commands", ())
    close = difflib.get_close_matches(misspelt, [*options, *commands], n=1)
    if (other := OTHER_NAMES.get(misspelt)) in commands:
        close = [other]
    takes_settings = {"settings", "arguments"} & {each.name for each in command.params}
    if takes_settings and (setting := _as_setting(misspelt, arguments, bool(close))):
        hint = setting
    elif close:
        hint = f"did you mean '{close[0]}'? {hint}"
    concerned = getattr(getattr(error, "param", None), "opts", ())
    for index, word in enumerate(arguments):
        if word.partition("=")[0] in concerned:
            where += f" {' '.join(arguments[index : index + 1 + ('=' not in word)])}"
    return FasttuneError(message, where, hint)


def _as_setting(option: str, arguments: list[str], exactly: bool) -> str:
    """How to write an option that is a setting, as --learning-rate 1e-4 is, perhaps misspelt unless
    `exactly`; else an empty text."""
    from fasttune.config import close_settings

    keys = close_settings(option.strip("-").replace("-", "_"), exactly)
    for word, following in zip_longest(arguments, arguments[1:], fillvalue="VALUE"):
        name, equals, value = word.partition("=")
        if name == option and keys:
            value = shlex.quote(value if equals else following)
            return f"write {' or '.join(f'{key}={value}' for key in keys)}"
    return ""


def _sentence(error: TyperException) -> str:
    message = error.message if hasattr(error, "possibilities") else error.format_message()
    message = message.partition("Did you mean")[0]  # the hint says it
    return " ".join(message.split()).rstrip(".")


OTHER_NAMES = {
    **dict.fromkeys(("train", "fit", "finetune", "fine-tune", "tune", "resume"), "run"),
    **dict.fromkeys(("ask", "infer", "inference", "predict", "complete"), "generate"),
    **dict.fromkeys(("batch",), "answer"),
    **dict.fromkeys(("eval", "test", "score"), "evaluate"),
    **dict.fromkeys(("validate", "inspect", "dataset"), "data"),
    **dict.fromkeys(("merge", "convert", "push"), "export"),
    **dict.fromkeys(("estimate", "memory"), "plan"),
    **dict.fromkeys(("formats", "template"), "templates"),
    **dict.fromkeys(("ls",), "list"),
    **dict.fromkeys(("delete", "remove", "del"), "rm"),
}
"""What other programs call a command -> its name here."""

# The global options.
FLAGS = ["--traceback", "--quiet", "-q", "--verbose", "-v"]
WITH_VALUE = ["--plugins-dir", "--plugin"]


def _global_first(arguments: list[str]) -> list[str]:
    """Move the global options to the front, so that they may follow the command, too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front, rest = [], []
    words = iter(arguments[:end])
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in [*FLAGS, *WITH_VALUE]:
            rest.append(word)
            continue
        front.append(word)
        if name in WITH_VALUE and not equals:
            value = next(words, None)
            if value is None:  # in front it would take the command for its value
                return [word]
            front.append(value)
    return front + rest + arguments[end:]


PATHS = ["--plugins-dir", "--plugin", "--config", "-c", "--html", "--out", "--output", "-o"]


def _refuse_empty_paths(arguments: list[str]) -> None:
    """Refuse an empty path, as of an unset shell variable: it would be the working folder."""
    for name, value in zip_longest(arguments, arguments[1:]):
        if (name in PATHS and value == "") or name in [f"{path}=" for path in PATHS]:
            raise FasttuneError(
                "an empty name is no path", f"{name} ''", "give a path, or omit the option"
            )


def complain(error: FasttuneError, command: str = "the command") -> int:
    """Print an error in its three lines on standard error, and return the exit status."""
    if not processes.speaks(error):
        return error.exit_status
    who = "" if processes.first() else f"process {processes.rank()}: "
    lines = [f"{who}{error.message}"]
    hint = error.hint or "see: fasttune COMMAND --help; --traceback shows where it failed"
    for label, text in (("where", error.where or command), ("what to do", hint)):
        first, *rest = text.splitlines()
        lines += [f"  {label}: {first}", *(f"    {line}" for line in rest)]
    with suppress(OSError):  # standard error is closed
        out = console(stderr=True)
        out.print("error:", style="bold red", end=" ")
        out.print("\n".join(lines), soft_wrap=True)
    return error.exit_status
