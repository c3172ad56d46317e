"""Where this user's runs are, in whatever folder: runs.json in the state folder."""

from __future__ import annotations

import logging
from pathlib import Path

from fasttune.errors import FasttuneError, reason
from fasttune.files import locked, state_dir, write_json
from fasttune.records import read_json

log = logging.getLogger(__name__)

LIMIT = 1000
"""Number of recent runs to remember."""


def remember(folder: Path) -> None:
    """Note where a run is, as the newest."""
    try:
        with locked(_file()):
            others = [path for path in known_runs() if path != folder.resolve()]
            write_json(_file(), [*map(str, others), str(folder.resolve())][-LIMIT:])
    except OSError as error:
        log.warning("warning: cannot note this run in %s: %s", _file(), reason(error))


def known_runs() -> list[Path]:
    """The folders of this user's runs, newest last; some may be removed."""
    try:
        return [Path(line) for line in read_json(_file(), list[str])]
    except FasttuneError:
        return []


def _file() -> Path:
    return state_dir() / "runs.json"
