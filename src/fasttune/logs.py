"""The log on standard error.

Modules log to `logging.getLogger(__name__)`. The command line calls `show`; a program that uses
fasttune as a library configures the logger "fasttune" itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console() -> Console:
    """Standard error. Progress bars share this console, so that log lines appear above them."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints the message as it is; rich's own handler would wrap and pad it."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a closed terminal or a full disk must not stop a training
            console().print(self.format(record), markup=False, soft_wrap=True)


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


def show(level: int) -> None:
    """Print log messages of this level and above."""
    logger = logging.getLogger("fasttune")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    logger.propagate = False
    logger.setLevel(level)
