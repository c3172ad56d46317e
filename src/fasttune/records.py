"""JSON files with a schema: the one reader, and what those of a run hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec

from fasttune.errors import FasttuneError

FORMAT = 2
"""Of a manifest."""


class TemplateFacts(TypedDict):
    """A run's format and where it came from.

    Attributes:
        identity: of the declaration, see `Template.identity`.
        declaration: the format itself; None for one whose text is computed, which needs its plugin.
    """

    name: str
    identity: str
    declaration: dict[str, Any] | None
    plugin: str
    distribution: str
    version: str
    path: str


class LoraFacts(TypedDict):
    """Names of layers with how many of each, and the number of trainable parameters."""

    layers: dict[str, int]
    left_out: dict[str, int]
    parameters: int


class DataFacts(TypedDict):
    """Where the rows came from, what they were, and how many were trained on.

    Attributes:
        train_sha256: of the rows before any was left out for its length.
        trained_sha256: of which of the training rows were short enough.
        heldout_sha256: of the held-out rows.
    """

    source: str
    train_sha256: str
    trained_sha256: str
    heldout_sha256: str
    train_rows: int
    eval_rows: int
    train_tokens: int


class Begun(TypedDict):
    """What a manifest holds from the beginning."""

    format: int
    config: dict[str, Any]
    status: Literal["running", "interrupted", "failed", "done"]
    started: str
    template: TemplateFacts
    system: str | None
    model: str
    quantization: Literal["nf4", "none"]
    dtype: Literal["float32", "bfloat16", "float16"]
    lora: LoraFacts
    data: DataFacts
    versions: dict[str, str]
    device: str


class Manifest(Begun, total=False):
    """manifest.json; keys beyond these are kept."""

    choices: dict[str, Any]
    batch_limit: int
    processes: int
    threads: int
    planned_memory_bytes: int | None
    finished: str
    steps: int
    attention: str
    tokens_per_second: float
    shared_tokens_saved: int
    peak_memory_bytes: int
    seconds: dict[str, float]
    best_eval_loss: float
    scores: dict[str, dict[str, float]]
    adapter_sha256: str


class Logged(TypedDict):
    """A line of metrics.jsonl; whatever else is in it is a number, too."""

    step: int


class TrainerState(TypedDict):
    """What a resumed run needs of transformers' own record in a checkpoint."""

    global_step: int
    max_steps: int
    stateful_callbacks: dict[str, Any]


RESTORE = "restore it from a copy, or move the folder away"


def read_json(file: Path, kind: Any, hint: str = RESTORE) -> Any:
    """The value in a JSON file, as it is there.

    Args:
        kind: its type, as msgspec takes it; of a `TypedDict` more keys may be there.
        hint: what to do if it is damaged.

    Raises:
        FasttuneError: it cannot be read, is no JSON in UTF-8, or of another type.
    """
    return _checked(_parsed(_read(file, hint), file, str(file), hint), kind, file, str(file), hint)


def read_manifest(file: Path) -> Manifest:
    """A run's manifest.

    Raises:
        FasttuneError: it is missing or damaged, or another version of fasttune wrote it.
    """
    found = read_json(file, dict[str, Any])
    version = found.get("format", 0)
    if version != FORMAT:
        versions = found.get("versions")
        by = versions.get("fasttune") if isinstance(versions, dict) else None
        raise FasttuneError(
            f"the run was written by fasttune {by or 'of an unknown version'}, "
            "whose runs this version does not read",
            f"{file}: format {version}; this version reads format {FORMAT}",
            "use that version for this run, or train it again",
        )
    manifest: Manifest = _checked(found, Manifest, file, str(file), RESTORE)
    return manifest


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a run's log, and whether half a one is behind them, as a kill leaves it; no file
    is an empty log.

    Raises:
        FasttuneError: a line is damaged.
    """
    hint = "restore it from a copy, or delete what is not whole: only the log is lost"
    if not os.path.lexists(file):
        return [], False

    def logged(line: bytes, where: str) -> dict[str, Any]:
        found = _checked(_parsed(line, file, where, hint), Logged, file, where, hint)
        numbers: dict[str, Any] = _checked(found, dict[str, float | None], file, where, hint)
        return numbers

    *whole, rest = _read(file, hint).split(b"\n")
    lines = [
        logged(line, f"{file}, line {number}")
        for number, line in enumerate(whole, 1)
        if line.strip()
    ]
    if not rest:
        return lines, False
    try:
        return [*lines, logged(rest, str(file))], False
    except FasttuneError:
        return lines, True


def _read(file: Path, hint: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        how = f"cannot be read: {error.strerror or error}"
        raise _damaged(file, str(file), how, hint) from error


def _parsed(text: bytes, file: Path, where: str, hint: str) -> Any:
    try:
        return json.loads(text.decode())  # unlike msgspec's, it takes NaN
    except UnicodeDecodeError as error:
        raise _damaged(file, where, f"is not UTF-8 at byte {error.start}", hint) from error
    except (ValueError, RecursionError) as error:
        how = f"is no JSON: {error}" if text.strip() else "is empty"
        raise _damaged(file, where, how, hint) from error


def _checked(value: Any, kind: Any, file: Path, where: str, hint: str) -> Any:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _damaged(file, where, str(error), hint) from error
    return value


def _damaged(file: Path, where: str, how: str, hint: str) -> FasttuneError:
    return FasttuneError(f"{file.name} is damaged", f"{where}: {how}", hint)
