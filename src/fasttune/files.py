"""Atomic writes, seals of finished folders, and the user's cache and state folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from fasttune.errors import FasttuneError, reason

NAME = re.compile(r"(?!\.)[\w.-]{1,100}")
"""What can name a template, a plugin or a run, and so be part of a file's name."""


def require_name(name: object, what: str, where: str) -> None:
    """Refuse what is not a NAME of `what`, such as "a template"."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise FasttuneError(
            f"{name!r} is no name for {what}",
            where,
            "use letters, digits, - _ and ., not starting with a dot; at most 100 characters",
        )


SEAL = "SHA256SUMS"
"""Lists a sealed folder's files and their digests, in the form of `sha256sum -c`."""


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, which is renamed to `target` if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{target.suffix}")
    try:
        with _naming(temporary, target):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder. An existing `target` stays until the new one is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _naming(target.with_name(f".{target.name}."), target):
        temporary = Path(tempfile.mkdtemp(".tmp", f".{target.name}.", target.parent))
    try:
        open_to_all(temporary)
        with _naming(temporary, target):
            yield temporary
            if target.exists():
                old = Path(tempfile.mkdtemp(".old", f".{target.name}.", target.parent))
                target.rename(old / target.name)
                try:
                    temporary.rename(target)
                except OSError:
                    (old / target.name).rename(target)
                    old.rmdir()
                    raise
                shutil.rmtree(old)
            else:
                temporary.rename(target)
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock `target` against other processes, and remove what a killed one left incomplete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):
        for incomplete in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(incomplete, ignore_errors=True)
        yield


@contextmanager
def only_one(lock_file: Path, busy: FasttuneError) -> Iterator[None]:
    """Hold a lock file, which is deleted at the end; raise `busy` if another process holds it."""
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock_file.unlink()
        lock.release()


@contextmanager
def _naming(temporary: Path, target: Path) -> Iterator[None]:
    """Replace the temporary path by the target in an OSError."""
    try:
        yield
    except OSError as error:
        if str(error.filename).startswith(str(temporary)):
            inside = str(error.filename).removeprefix(str(temporary))
            error.filename = f"{target}{inside}" if inside.startswith(os.sep) else str(target)
            error.filename2 = None
        raise


def require_free(target: Path, option: str, force: bool) -> None:
    """Refuse to overwrite the file of an option, unless `force` is set and it is a regular one."""
    where = f"{option} {target}"
    if not target.name:
        raise FasttuneError("this is not a file name", where, "give a file")
    if target.exists() and not target.is_file():
        raise FasttuneError("this is no file that could be replaced", where, "choose another name")
    if target.exists() and not force:
        raise FasttuneError("the file exists", where, "choose another, or replace it with --force")
    if not force and target.parent.exists() and not target.parent.is_dir():
        hint = f"{target.parent} is not a folder; choose another path"
        raise FasttuneError("cannot write this file", where, hint)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically; it is on the disk before the file has its name."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        sync(temporary)


def write_json(target: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(target, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


LARGEST = 256 * 2**20
"""Bytes of the largest file that is read whole."""


def read_regular(file: Path) -> bytes:
    """Read a file whole. A pipe, a device or a file that is too large is an OSError."""
    status = file.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    if status.st_size > LARGEST:
        size = f"{status.st_size / 1e6:,.0f} MB, and the limit is {LARGEST / 1e6:,.0f} MB"
        raise OSError(errno.EFBIG, size, str(file))
    return file.read_bytes()


def sha256(file: Path) -> str:
    """The file's digest as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> str:
    """Write the seal of a finished folder, flush the folder to the disk, and return the digest of
    the seal, which identifies the content of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write_text(folder / SEAL, "".join(lines))
    for path in (*files, *{path.parent for path in files}, folder):
        sync(path)
    return sha256(folder / SEAL)


def check_seal(folder: Path, what: str, hint: str, digest: str | None = None) -> bool:
    """Check a folder against its seal. Files that are not in the seal are ignored.

    Args:
        what: what the folder holds, as "the adapter".
        hint: what to do if it is damaged.
        digest: of the seal, if known; then the seal must exist.

    Returns:
        whether the folder has a seal.
    """
    file = folder / SEAL
    if digest is None and not os.path.lexists(file):
        return False

    def damaged(how: str) -> FasttuneError:
        return FasttuneError(f"{what} is damaged: {how}", str(folder), hint)

    try:
        text = read_regular(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(f"{SEAL} cannot be read ({reason(error)})") from error
    if digest is not None and hashlib.sha256(text.encode()).hexdigest() != digest:
        raise damaged(f"{SEAL} is not the one that was written with it")
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None or ".." in Path(match[2]).parts or Path(match[2]).is_absolute():
            raise damaged(f"line {number} of {SEAL} is malformed")
        expected, name = match.groups()
        if not (folder / name).is_file():
            raise damaged(f"{name} is missing")
        try:
            actual = sha256(folder / name)
        except OSError as error:
            raise damaged(f"{name} cannot be read ({reason(error)})") from error
        if actual != expected:
            raise damaged(f"{name} is not what was written")
    if not text:
        raise damaged(f"{SEAL} is empty")
    return True


def unlisted(folder: Path) -> list[Path]:
    """The files below a sealed folder that its seal does not list."""
    lines = read_regular(folder / SEAL).decode(errors="replace").splitlines()
    listed = {SEAL, *(line[66:] for line in lines)}
    files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [path for path in files if path.relative_to(folder).as_posix() not in listed]


LEFTOVER = re.compile(r"\..+\.[a-z0-9_]+\.(tmp|old)(\.\w+)?")
"""Name of a temporary file or folder that a killed process has left."""


def require_no_links(folder: Path, what: str) -> None:
    """Refuse a folder with a symbolic link in it: reading, writing or deleting would leave it."""
    if links := [path for path in sorted(folder.rglob("*")) if path.is_symlink()]:
        raise FasttuneError(
            f"{what} contains a symbolic link, which fasttune does not follow",
            "\n".join(f"{path} -> {path.readlink()}" for path in links[:10]),
            "replace the link with what it points to, or delete it",
        )


def absolute(name: str) -> str:
    """An existing path as an absolute one; any other name, such as the Hub's, unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def short_path(name: str) -> str:
    """A path to print: relative if it is below the working folder."""
    path = Path(name)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and here in path.parents else name


def cache_dir() -> Path:
    """The folder of converted models and encoded rows: FASTTUNE_CACHE, or fasttune/ in the user's
    cache folder."""
    folder = os.environ.get("FASTTUNE_CACHE")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fasttune"
    return Path(folder) if folder else own


def state_dir() -> Path:
    """The folder of what commands remember: fasttune/ in the user's state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "fasttune"


def open_to_all(folder: Path) -> None:
    """Give a folder of `tempfile` the permissions of any other new folder."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
