"""Files that are either whole or absent, seals by which a finished folder is known to be whole,
and the folder for what can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from fasttune.errors import FasttuneError, reason

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


SEAL = "SHA256SUMS"
"""The list of a sealed folder's files with their digests, as `sha256sum -c` reads it."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` to write a file to; renamed to `target` if the block
    succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{target.suffix}")
    try:
        with named(temporary, target):
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
    with named(target.with_name(f".{target.name}."), target):
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        )
    try:
        open_to_all(temporary)
        with named(temporary, target):
            yield temporary
            replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Wait until no other process makes `target`, and keep others from it; what a killed one left
    half made is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def named(temporary: Path, target: Path) -> Iterator[None]:
    """Name the target in an error, or the file in it, instead of the temporary name."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith(str(temporary)):
            inside = str(error.filename).removeprefix(str(temporary))
            error.filename = f"{target}{inside}" if inside.startswith(os.sep) else str(target)
            error.filename2 = None
        raise


def replace_folder(new: Path, target: Path) -> None:
    """Give a complete folder its name; what has it now is gone afterwards."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        target.rename(old / target.name)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
    sync(target.parent)


def require_free(target: Path, option: str, force: bool) -> None:
    """Refuse to write a file over what is there.

    Args:
        option: what the file was given with, as "--output".
        force: a regular file may be replaced.

    Raises:
        FasttuneError: there is something; or `target` is empty.
    """
    if not target.name:
        raise FasttuneError("this is no name of a file", f"{option} {target}", "give a file")
    if target.exists() and not target.is_file():
        raise FasttuneError(
            "this is no file that could be replaced", f"{option} {target}", "choose another name"
        )
    if target.exists() and not force:
        raise FasttuneError(
            "the file exists", f"{option} {target}", "choose another, or replace it with --force"
        )
    if not force and target.parent.exists() and not target.parent.is_dir():
        raise FasttuneError(
            "there can be no such file", f"{option} {target}", f"{target.parent} is no folder"
        )


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically, and have it on the disk before it has its name."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        sync(temporary)


def write_json(target: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(target, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256(file: Path) -> str:
    """The file's digest as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> str:
    """Write the list of a finished folder's files, and have all of it on the disk.

    Returns:
        the digest of the list, which stands for the whole folder.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SEAL, "".join(lines))
    for path in (*files, *{path.parent for path in files}, folder):
        sync(path)
    return sha256(folder / SEAL)


def check_seal(folder: Path, what: str, hint: str, digest: str | None = None) -> bool:
    """Whether the folder is sealed, every listed file being as it was; files that were added do not
    count.

    Args:
        what: what the folder holds, as "the adapter".
        hint: what to do if it is damaged.
        digest: of the list, where it is known; without it a folder without a list may pass.

    Raises:
        FasttuneError: a file is missing or another one, or the list itself is.
    """
    file = folder / SEAL
    if digest is None and not os.path.lexists(file):
        return False

    def damaged(how: str) -> FasttuneError:
        return FasttuneError(f"{what} is damaged: {how}", str(folder), hint)

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(f"{SEAL} cannot be read ({reason(error)})") from error
    if digest is not None and hashlib.sha256(text.encode()).hexdigest() != digest:
        raise damaged(f"{SEAL} is not the one that was written with it")
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None or ".." in Path(match[2]).parts or Path(match[2]).is_absolute():
            raise damaged(f"line {number} of {SEAL} is none")
        path = folder / match[2]
        if not path.is_file():
            raise damaged(f"{match[2]} is missing")
        try:
            found = sha256(path)
        except OSError as error:
            raise damaged(f"{match[2]} cannot be read ({reason(error)})") from error
        if found != match[1]:
            raise damaged(f"{match[2]} is not what was written")
    if not text:
        raise damaged(f"{SEAL} is empty")
    return True


def absolute(name: str) -> str:
    """A path that leads somewhere, in full; any other name, as one of the Hub's, as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def shown(name: str) -> str:
    """A path for people: relative where it is below the folder one stands in."""
    path = Path(name)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else name


def cache_dir() -> Path:
    """Where converted models and encoded rows are kept: FASTTUNE_CACHE, or fasttune/ in the user's
    cache folder."""
    if folder := os.environ.get("FASTTUNE_CACHE"):
        return Path(folder)
    return _of_user("XDG_CACHE_HOME", ".cache")


def state_dir() -> Path:
    """What is remembered from one command to the next: fasttune/ in the user's state folder."""
    return _of_user("XDG_STATE_HOME", ".local/state")


def _of_user(variable: str, otherwise: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / otherwise) / "fasttune"


def open_to_all(folder: Path) -> None:
    """Give a folder that `tempfile` made the rights of any other new one."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
