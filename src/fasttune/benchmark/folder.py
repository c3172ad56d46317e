"""The folder that a benchmark leaves."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from fasttune.errors import FasttuneError


def new_folder(*words: str) -> Path:
    """A folder below bench/, named after these and the time."""
    return Path("bench") / "-".join([*words, datetime.now().strftime("%Y%m%d-%H%M%S")])


def require_new(target: Path) -> None:
    """Raises FasttuneError: the folder exists."""
    if target.exists():
        raise FasttuneError("the result folder exists", str(target), "choose another with --output")
