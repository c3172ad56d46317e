"""The one kind of error a person sees, and the exit statuses of the command line."""

from __future__ import annotations

from collections.abc import Sequence

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


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint that names the closest known word and lists all of them."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"{guess}known: {', '.join(sorted(known)) or 'none'}"
