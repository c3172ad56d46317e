"""JSON files with a schema: the one reader, and what those of a run hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec

from fasttune.errors import FasttuneError

FORMAT = 1
"""Of a manifest. Those without one, which is format 0, have no `config` and no digest of the
adapter; nothing else in them has another meaning."""


class TemplateFacts(TypedDict):
    """A template's `Identity`."""

    name: str
    provider: str
    distribution: str
    version: str
    path: str
    source: str
    rendering: str


class LoraFacts(TypedDict):
    """Names of layers with how many of each, and the number of trainable parameters."""

    layers: dict[str, int]
    left_out: dict[str, int]
    parameters: int


class DataFacts(TypedDict):
    """Where the rows came from, what they were, and how many were trained on."""

    source: str
    train_sha256: str
    eval_sha256: str
    train_rows: int
    eval_rows: int
    train_tokens: int


class Begun(TypedDict):
    """What a manifest holds from the beginning."""

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

    format: int
    config: dict[str, Any]
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
    plugin_sha256: str


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
    """A run's manifest, of any format up to `FORMAT`.

    Raises:
        FasttuneError: it is missing or damaged, or of a later fasttune.
    """
    found = read_json(file, dict[str, Any])
    version = found.get("format", 0)
    if isinstance(version, int) and version > FORMAT:
        raise FasttuneError(
            "the run was written by a later fasttune",
            f"{file}: format {version}; this fasttune knows {FORMAT}",
            "pip install --upgrade fasttune",
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
