"""Keeping the chatter of libraries away from the terminal."""

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
"""What an OSError calls it."""

CHATTER = ("Unsloth: Will smartly offload", "Unsloth: Double buffering enabled")
"""What Unsloth prints in every training with offloaded checkpointing."""


def prepare_streams() -> None:
    """Make the standard streams take whatever comes: characters that their encoding lacks are
    replaced, and a stream that was closed before the start is /dev/null.

    A descriptor that is closed would be given to the next file that is opened, and libraries would
    print into it.
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
    """A method of standard output whose errors name it: the system names no file when one that is
    open cannot be written to."""

    def named(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except OSError as error:
            error.filename = STDOUT
            raise

    return named


def drop_output() -> None:
    """Send what standard output still holds to nowhere: Python would try once more at its end, and
    complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print on import and loading from the terminal, unless the block fails in
    a way that nobody has put into words, or the log shows everything (`--verbose`).

    Compiled code writes to the descriptors and Python to sys.stdout and sys.stderr, which need not
    be the same; both are redirected. A library may keep the sys.stderr that it finds, for its log:
    what it finds is no file of its own but the descriptor, and outlives the block.
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
        failed = True
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
            failed = False
        except (FasttuneError, KeyboardInterrupt):  # say all there is to know
            failed = False
            raise
        finally:
            out.flush()  # a line without an end would come out later
            err.flush()
            sink.flush()
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            if failed:
                sink.seek(0)
                sys.stderr.write(sink.read())


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Keep standard output for what a command prints: what is printed within the block, by a
    program that it starts as well, goes to standard error."""
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
    """As `prints_to_stderr`, for what libraries print while they work; what Unsloth always says
    goes to the log (`--verbose`)."""
    with prints_to_stderr(), redirect_stdout(_Printed()) as printed:
        try:
            yield
        finally:
            printed.close()


class _Printed(io.TextIOBase):
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
