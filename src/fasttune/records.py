"""JSON files with a schema: the reader, and the schemas of a run's files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from fasttune.errors import FasttuneError
from fasttune.files import read_regular

FORMAT = 2
"""Of a manifest."""


class TemplateFacts(TypedDict):
    """A run's format and where it came from. A format whose text is computed has no declaration:
    it needs its plugin."""

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
    """

    source: str
    train_sha256: str
    trained_sha256: str
    heldout_sha256: str
    train_rows: int
    eval_rows: int
    train_tokens: int


class Scores(TypedDict, total=False):
    """Metric -> its value on the sample rows, and "higher", "lower" or "" for the better direction;
    all are missing if no rows were answered."""

    before: dict[str, float]
    after: dict[str, float]
    better: dict[str, str]


class Manifest(TypedDict):
    """manifest.json; other keys are kept. A new run has all but the `NotRequired` keys."""

    format: int
    config: dict[str, Any]
    status: Literal["running", "interrupted", "failed", "nothing learned", "done"]
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
    base: NotRequired[dict[str, str]]
    choices: NotRequired[dict[str, Any]]
    batch_limit: NotRequired[int]
    processes: NotRequired[int]
    threads: NotRequired[int]
    planned_memory_bytes: NotRequired[int | None]
    finished: NotRequired[str]
    steps: NotRequired[int]
    continued: NotRequired[list[int]]
    attention: NotRequired[str]
    tokens_per_second: NotRequired[float]
    shared_tokens_saved: NotRequired[int]
    peak_memory_bytes: NotRequired[int]
    seconds: NotRequired[dict[str, float]]
    best_eval_loss: NotRequired[float]
    scores: NotRequired[Scores]
    scored: NotRequired[Literal["held-out", "training"]]
    adapter_sha256: NotRequired[str]


class Logged(TypedDict):
    """A line of metrics.jsonl; its other values are numbers, too."""

    step: int


class CallbackState(TypedDict):
    """What a callback of transformers is created from when a run is resumed."""

    args: dict[str, Any]
    attributes: dict[str, Any]


class TrainerState(TypedDict):
    """What a resumed run needs of transformers' own record in a checkpoint."""

    global_step: int
    max_steps: int
    stateful_callbacks: dict[str, CallbackState | list[CallbackState]]
    log_history: list[dict[str, Any]]
    best_global_step: NotRequired[int | None]
    best_metric: NotRequired[float | None]
    best_model_checkpoint: NotRequired[str | None]
    epoch: NotRequired[float | None]
    eval_steps: NotRequired[float | None]
    logging_steps: NotRequired[float | None]
    num_train_epochs: NotRequired[float]
    save_steps: NotRequired[float | None]
    total_flos: NotRequired[float]
    train_batch_size: NotRequired[int | None]


RESTORE = "restore it from a copy, or move the folder away"


def read_json(file: Path, kind: Any, hint: str = RESTORE) -> Any:
    """Read the value in a JSON file of a type; a `TypedDict` may have more keys."""
    with _reading(file, str(file), hint):
        value = json.loads(read_regular(file).decode())  # unlike msgspec's, it takes NaN
        msgspec.convert(value, kind)
    return value


def read_manifest(file: Path) -> Manifest:
    """Read a run's manifest. One in another format is refused."""
    manifest: Manifest = read_json(file, dict[str, Any])
    version = manifest.get("format", 0)
    if version != FORMAT:
        versions = manifest.get("versions")
        by = versions.get("fasttune") if isinstance(versions, dict) else None
        raise FasttuneError(
            f"the run was written by fasttune {by or 'of an unknown version'}, "
            "whose runs this version does not read",
            f"{file}: format {version}; this version reads format {FORMAT}",
            "use that version for this run, or train it again",
        )
    with _reading(file, str(file), RESTORE):
        msgspec.convert(manifest, Manifest)
    return manifest


def read_metrics(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """Read the lines of a run's log. A missing file is an empty log.

    Returns:
        the complete lines, and whether the last one is incomplete, as after SIGKILL.
    """
    hint = "restore it from a copy, or delete what is not whole: only the log is lost"
    if not os.path.lexists(file):
        return [], False

    def logged(line: bytes, where: str) -> dict[str, Any]:
        with _reading(file, where, hint):
            values: dict[str, Any] = json.loads(line.decode())
            msgspec.convert(values, Logged)
            msgspec.convert(values, dict[str, float | None])
        return {key: math.nan if value is None else value for key, value in values.items()}

    with _reading(file, str(file), hint):
        *whole, rest = read_regular(file).split(b"\n")
    numbered = enumerate(whole, 1)
    lines = [logged(line, f"{file}, line {number}") for number, line in numbered if line.strip()]
    try:
        return lines + ([logged(rest, str(file))] if rest else []), False
    except FasttuneError:
        return lines, True


@contextmanager
def _reading(file: Path, where: str, hint: str) -> Iterator[None]:
    """Turn what reading, parsing and checking raise into an error that says where the damage is."""
    try:
        yield
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        match error:
            case OSError():
                how = f"cannot be read: {error.strerror or error}"
            case UnicodeDecodeError():
                how = f"is not UTF-8 at byte {error.start}"
            case json.JSONDecodeError() if not error.doc.strip():
                how = "is empty"
            case msgspec.ValidationError():
                how = str(error)
            case _:
                how = f"is no JSON: {error}"
        raise FasttuneError(f"{file.name} is damaged", f"{where}: {how}", hint) from error
