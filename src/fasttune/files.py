"""Files that are either whole or absent, and the folder for what can be made again."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError

NAME = re.compile(r"(?!\.)[\w.-]{1,100}")
"""Letters, digits, `-`, `_` and `.`, not starting with a dot."""


def valid_name(name: object) -> bool:
    """Whether this may name a template, a plugin or a run: it becomes part of a file's name and
    must not lead out of the folder."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def require_name(name: object, what: str, where: str) -> None:
    """Refuse what is no name.

    Args:
        what: what it is to name, as "a template".
        where: where it stands.

    Raises:
        FasttuneError: see `valid_name`.
    """
    if not valid_name(name):
        raise FasttuneError(
            f"{name!r} is no name for {what}",
            where,
            "use letters, digits, - _ and ., not starting with a dot; at most 100 characters",
        )


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` to write a file to; renamed to `target` if the block
    succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{target.suffix}")
    try:
        with _named(temporary, target):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to fill; renamed to `target` if the block succeeds.

    An existing `target` is replaced, and is gone only once the new one is complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _named(target.with_name(f".{target.name}."), target):
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        )
    try:
        temporary.chmod(0o777 & ~_umask())
        with _named(temporary, target):
            yield temporary
            if target.exists():
                old = temporary.with_suffix(".old")
                target.rename(old)
                temporary.rename(target)
                shutil.rmtree(old)
            else:
                temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _named(temporary: Path, target: Path) -> Iterator[None]:
    """Name the target in an error, or the file in it, instead of the temporary name."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith(str(temporary)):
            inside = str(error.filename).removeprefix(str(temporary))
            error.filename = f"{target}{inside}" if inside.startswith(os.sep) else str(target)
            error.filename2 = None
        raise


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(target, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def cache_dir() -> Path:
    """Where converted models and encoded rows are kept: FASTTUNE_CACHE, or fasttune/ in the user's
    cache folder."""
    if folder := os.environ.get("FASTTUNE_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData/Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fasttune"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
