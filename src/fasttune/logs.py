"""What a person watches: the lines of the logger "fasttune" on standard error.

Modules log to `logging.getLogger(__name__)`. A program that uses fasttune as a library decides
itself what becomes of that; the command line calls `show`.
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
    """Standard error. One for all: what is logged while a progress bar runs appears above it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class ConsoleHandler(logging.Handler):
    """Prints a record's message as it is; rich's own handler would wrap and pad it for a log."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full or closed terminal is no reason to stop a training
            console().print(self.format(record), markup=False, soft_wrap=True)


@contextmanager
def muted(*names: str) -> Iterator[None]:
    """Within the block these loggers tell what went wrong only."""
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
    """Print the logger's lines from a level on: INFO is what a person watches."""
    logger = logging.getLogger("fasttune")
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    logger.propagate = False
    logger.setLevel(level)
