"""Keep what libraries print off the terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from fasttune.errors import FasttuneError

log = logging.getLogger(__name__)

STDOUT = "standard output"
"""The file name in an OSError."""

CHATTER = ("Unsloth: Will smartly offload", "Unsloth: Double buffering enabled")
"""Lines that Unsloth prints in every training with offloaded checkpointing."""


def prepare_streams() -> None:
    """Make the standard streams accept any character, and replace closed ones by /dev/null.

    Otherwise the next file that is opened would get a closed stream's descriptor, and libraries
    would print into that file.
    """
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


def _naming(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of standard output whose OSErrors name it; the system leaves the name out."""

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
    """Hide what libraries print on import and loading. It is shown if the block raises anything
    but a FasttuneError, and with `--verbose`.

    Compiled code writes to the descriptors, Python to sys.stdout and sys.stderr; both are
    redirected. A library may keep the sys.stderr of this block for its log, so that one writes to
    the descriptor, which is still open afterwards.
    """
    if logging.getLogger("fasttune").isEnabledFor(logging.DEBUG):
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as sink:
        out, err = (
            os.fdopen(number, "w", 1, encoding="utf-8", errors="replace", closefd=False)
            for number in (1, 2)
        )
        saved = [os.dup(1), os.dup(2)]
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        show = True
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
            show = False
        except (FasttuneError, KeyboardInterrupt):  # need no explanation
            show = False
            raise
        finally:
            out.flush()  # else an incomplete line would appear later
            err.flush()
            sink.flush()
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            if show:
                sink.seek(0)
                sys.stderr.write(sink.read())


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Send what the block and the programs that it starts print to standard error, so that standard
    output has the command's own output alone."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output
        saved = -1
    try:
        if saved >= 0:
            with suppress(OSError):  # there is no standard error
                os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


@contextmanager
def library_prints() -> Iterator[None]:
    """As `prints_to_stderr`, but log Unsloth's `CHATTER` for `--verbose`."""
    with prints_to_stderr(), redirect_stdout(_Lines()) as lines:
        try:
            yield
        finally:
            lines.close()


class _Lines(io.TextIOBase):
    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._pass_on(line)
        return len(text)

    def close(self) -> None:
        if self._rest:
            self._pass_on(self._rest)
        self._rest = ""

    def _pass_on(self, line: str) -> None:
        if line.startswith(CHATTER):
            log.debug(line)
        else:
            print(line, file=sys.stderr)
