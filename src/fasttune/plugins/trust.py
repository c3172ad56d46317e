"""Which plugin files may run: those that nobody else can write, and that the person has agreed to.

A folder beside a config comes with the config, perhaps from a stranger, and so does one in a run.
Their files run when a person has agreed to just these: the SHA-256 of each is kept in the user's
config folder. What a run of one's own was trained with counts as agreed to.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from fasttune.errors import FasttuneError
from fasttune.files import sha256, write_json

Ask = Callable[[Sequence[Path]], bool]
"""Tells a person of files that are to run, and returns whether they may."""


def refuse_writable(path: Path) -> None:
    """Refuse a folder or a file of plugins that others may write to.

    Raises:
        FasttuneError: everybody may write to it, or another person than this one and root owns it.
    """
    if not hasattr(os, "getuid"):
        return
    found = path.stat()
    if found.st_mode & stat.S_IWOTH:
        raise FasttuneError(
            "plugins that everybody may write to are not loaded",
            str(path),
            f"chmod o-w {path}, or copy what you trust to a folder of your own",
        )
    if found.st_uid not in (os.getuid(), 0):
        raise FasttuneError(
            "plugins that another person owns are not loaded",
            str(path),
            "copy what you trust to a folder of your own: chmod u+rwX,go-w is what it needs",
        )


def require_consent(
    folder: Path, record: Path, trust: bool | Ask, what: str = "plugins beside the config"
) -> None:
    """Insist on a person's consent to the .py files in and below a folder, and keep it.

    Helpers and tests count: a plugin can import them.

    Args:
        record: a JSON file, SHA-256 -> the path that the file had.
        trust: True where the person has agreed; or who asks.
        what: the files, for the error.

    Raises:
        FasttuneError: there is no consent.
    """
    hashes = {sha256(file): file for file in sorted(folder.rglob("*.py")) if file.is_file()}
    agreed = _read(record)
    new = {digest: file for digest, file in hashes.items() if digest not in agreed}
    if not new:
        return
    if not (trust if isinstance(trust, bool) else trust([*new.values()])):
        raise FasttuneError(
            f"{what} run as code, and you have not agreed to that",
            "\n".join(printable(file) for file in new.values()),
            "read them, then give --trust-plugins: until they change, it is not asked again",
        )
    write_json(record, agreed | {digest: str(file.resolve()) for digest, file in new.items()})


def printable(file: Path) -> str:
    """A path for a terminal: its name may come from a stranger."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(file))


def _read(record: Path) -> dict[str, str]:
    """What was agreed to; nothing where the record is not what was written."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
