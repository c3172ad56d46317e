"""The error that users see, and the exit statuses of the command line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class FasttuneError(Exception):
    """An error that the user can fix: what failed, in one line; where (the file, row, column or
    key, perhaps in several lines); and what to do."""

    exit_status = EXIT_BAD_INPUT

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.message, self.where, self.hint) if part)


def without_password(text: str) -> str:
    """Remove user and password from the addresses in a text."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or of its cause's, with the next one after a colon;
    else the name of its type. Passwords in addresses are removed."""
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        if lines:
            text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
            return without_password(text)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def blame(
    error: BaseException, what: str, file: Path, where: str = "", hint: str = "fix it there"
) -> FasttuneError:
    """The error of a plugin's code, with the last line of its file that ran.

    Args:
        what: the part of the plugin, as "template 'mine'".
        file: the plugin's file; frames of other files are left out.
        where: the row or file that the plugin worked on.
    """
    if isinstance(error, FasttuneError):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    place = f"{file}, line {frames[-1].lineno}: {frames[-1].line}" if frames else str(file)
    text = " ".join(str(error).split())
    return FasttuneError(
        f"{what} fails: {type(error).__name__}{': ' if text else ''}{text}",
        "\n".join(filter(None, (place, where))),
        hint,
    )


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """A hint with the closest choice, and the first ones of all."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    shown, more = sorted(choices)[:20], len(choices) - 20
    rest = f" and {more} more" if more > 0 else ""
    return f"{guess}choose from: {', '.join(shown) or 'none'}{rest}"
