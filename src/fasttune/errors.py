"""The one kind of error a person sees, and the exit statuses of the command line."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class FasttuneError(Exception):
    """Something the person at the keyboard can put right.

    Args:
        message: what failed, in one line.
        where: the file, row, column or key it is about; may be several lines.
        hint: what to do about it.
    """

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.where, self.hint) if part)


def reason(error: BaseException) -> str:
    """The first line that an exception, or what it came from, has to say, with the next one where
    it ends in a colon; else its type's name."""
    at: BaseException | None = error
    while at is not None:
        lines = [line.strip() for line in str(at).splitlines() if line.strip()]
        if lines:
            return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        at = at.__cause__ or at.__context__
    return type(error).__name__


def blame(
    error: BaseException, what: str, file: Path, where: str = "", hint: str = "fix it there"
) -> FasttuneError:
    """The error of a plugin's own code, with the line of its file that was reached.

    Args:
        what: the plugin's part, as "template 'mine'".
        file: the plugin's; frames of other files are not shown.
        where: what it was working on.
    """
    if isinstance(error, FasttuneError):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    place = f"{file}, line {frames[-1].lineno}: {frames[-1].line}" if frames else str(file)
    said = " ".join(str(error).split())
    return FasttuneError(
        f"{what} fails: {type(error).__name__}{': ' if said else ''}{said}",
        "\n".join(filter(None, (place, where))),
        hint,
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint that names the closest known word and lists all of them."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"{guess}known: {', '.join(sorted(known)) or 'none'}"
