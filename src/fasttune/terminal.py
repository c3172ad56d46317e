"""What reaches the terminal: text, the log, the standard streams, and what libraries print.

A terminal obeys control characters: they rename its window, write to the clipboard and hide text.
All text for people is printed by `echo`, by a `console` or by the log, which show them instead.

Modules log to `logging.getLogger(__name__)`. The command line calls `show_log`; a program that uses
fasttune as a library configures the logger "fasttune" itself.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

log = logging.getLogger(__name__)

STDOUT = "standard output"
"""The file name in an OSError."""

CHATTER = ("Unsloth: Will smartly offload", "Unsloth: Double buffering enabled")
"""Lines that Unsloth prints in every training with offloaded checkpointing."""


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 except tab and newline, DEL, C1, and what overrides the direction of text."""


def visible(text: str) -> str:
    """The text with control characters as ⟨U+001B⟩."""
    return CONTROLS.sub(lambda control: f"⟨U+{ord(control[0]):04X}⟩", text)


def echo(
    text: object = "", end: str = "\n", file: IO[str] | None = None, raw: bool = False
) -> None:
    """Print text for people, by default on standard output; with `raw` unchanged, unless that is a
    terminal."""
    exact = raw and not (file or sys.stdout).isatty()
    print(str(text) if exact else visible(str(text)), end=end, file=file, flush=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON without characters that a terminal would obey, or that standard output lacks."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text if text == visible(text) else json.dumps(value, indent=indent)


def console(stderr: bool = False) -> Console:
    """A console that prints strings as they are, without markup, and control characters visibly.

    It is 120 columns wide unless it is a terminal, so that logs stay readable.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Visible(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                yield part if part.control else Segment(visible(part.text), part.style)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 120
    return Visible(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


@cache
def log_console() -> Console:
    """Standard error. Progress bars share this console, so that log lines appear above them."""
    return console(stderr=True)


class ConsoleHandler(logging.Handler):
    """Prints the message as it is; rich's own handler would wrap and pad it."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a closed terminal or a full disk must not stop a training
            log_console().print(self.format(record), soft_wrap=True)


@contextmanager
def muted(*names: str) -> Iterator[None]:
    """Limit these loggers to warnings and errors within the block."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def show_log(level: int) -> None:
    """Print log messages of this level and above."""
    logger = logging.getLogger("fasttune")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    logger.propagate = False
    logger.setLevel(level)


def prepare_streams() -> None:
    """Make the standard streams accept any character, and replace closed ones by /dev/null: the
    next file to be opened would get their descriptors, and libraries would print into it.

    Tracebacks show control characters, too."""
    sys.excepthook = _crashed
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if name == "stderr" else "replace")
    if isinstance(sys.stdout, io.TextIOWrapper) and "write" not in vars(sys.stdout):
        for method in ("write", "flush"):
            setattr(sys.stdout, method, _naming(getattr(sys.stdout, method)))


def _crashed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


def _naming(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of standard output whose OSErrors name the stream, unlike the system's."""

    def named(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            error.filename = STDOUT
            raise

    return named


def drop_output() -> None:
    """Discard what standard output still buffers; Python would flush it at exit, and fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries print, unless the block raises more than a FasttuneError, or `--verbose`.

    Compiled code writes to the descriptors, Python to sys.stdout and sys.stderr; both are
    redirected. A library may keep the sys.stderr of this block for its log.
    """
    if logging.getLogger("fasttune").isEnabledFor(logging.DEBUG):
        yield
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as sink:
        try:
            with (
                _replaced(1, sink.fileno()) as out,
                _replaced(2, sink.fileno()) as err,
                redirect_stdout(out),
                redirect_stderr(err),
            ):
                yield
        except (FasttuneError, KeyboardInterrupt):  # need no explanation
            raise
        except BaseException:
            sink.seek(0)
            sys.stderr.write(visible(sink.read()))
            raise


@contextmanager
def _replaced(number: int, target: int) -> Iterator[IO[str]]:
    """Make a standard descriptor a copy of another, and yield a text stream that writes to it and
    stays open."""
    (sys.stdout if number == 1 else sys.stderr).flush()
    saved = os.dup(number)
    os.dup2(target, number)
    stream = os.fdopen(number, "w", 1, encoding="utf-8", errors="replace", closefd=False)
    try:
        yield stream
    finally:
        stream.flush()  # else an incomplete line would appear later
        os.dup2(saved, number)
        os.close(saved)


@contextmanager
def library_prints() -> Iterator[None]:
    """Send what the block and the programs that it starts print to standard error, so that standard
    output has the command's own output alone. Unsloth's `CHATTER` is logged for `--verbose`."""
    with _replaced(1, 2), redirect_stdout(_Lines()) as lines:
        try:
            yield
        finally:
            lines.close()


class _Lines(io.TextIOBase):
    _rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(CHATTER):
                log.debug(line)
            else:
                echo(line, file=sys.stderr)
        return len(text)

    def close(self) -> None:
        if self._rest:
            self.write("\n")
