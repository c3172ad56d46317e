"""YAML and command-line overrides -> frozen dataclasses. Every setting is explained in
configs/default.yaml."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fasttune.errors import FasttuneError, did_you_mean

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the precisions."""
PRECISIONS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ModelConfig:
    name: str | None = None
    max_length: int = 1024
    quantization: Literal["auto", "nf4", "none"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    dropout: Literal["off", "config"] = "off"


@dataclass(frozen=True)
class LoraConfig:
    r: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    train: str | None = None
    eval: str | None = None
    eval_fraction: float = 0.05
    split_seed: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    skip_bad_rows: bool = False
    overlong: Literal["drop", "truncate", "error"] = "drop"


@dataclass(frozen=True)
class TrainConfig:
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    gradient_accumulation: int = 1
    packing: bool = True
    learning_rate: float = 2e-4
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "auto"
    gradient_checkpointing: Literal["auto", "unsloth", "on", "off"] = "auto"
    log_steps: int = 1
    eval_steps: int | None = None
    eval_batch_size: int = 4
    early_stopping: int | None = None
    save_steps: int | None = None
    save_total_limit: int = 2
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplesConfig:
    count: int = 6
    max_new_tokens: int = 128
    batch_size: int = 6


@dataclass(frozen=True)
class RunConfig:
    template: str = "reasoning"
    system: str | None = None
    seed: int = 3407
    output: str = "runs"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = TrainConfig()
    samples: SamplesConfig = SamplesConfig()

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as YAML and JSON take them."""
        return _plain(dataclasses.asdict(self))


# key -> (test, what is wanted). Whatever is not a matter of type.
_RANGES: dict[str, tuple[typing.Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "model.max_length",
            "lora.r",
            "data.limit",
            "train.max_steps",
            "train.batch_size",
            "train.gradient_accumulation",
            "train.log_steps",
            "train.eval_steps",
            "train.eval_batch_size",
            "train.early_stopping",
            "train.save_steps",
            "train.save_total_limit",
            "samples.max_new_tokens",
            "samples.batch_size",
        ),
        (lambda value: value >= 1, "a whole number of 1 or more"),
    ),
    **dict.fromkeys(
        ("lora.alpha", "train.epochs", "train.learning_rate", "train.max_grad_norm"),
        (lambda value: 0 < value < float("inf"), "a number above 0"),
    ),
    **dict.fromkeys(
        ("train.weight_decay", "train.warmup_steps", "samples.count", "data.split_seed"),
        (lambda value: value >= 0, "0 or more"),
    ),
    "seed": (lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295"),
    "lora.dropout": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "data.eval_fraction": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
}


def load_config(path: Path | None = None, overrides: Sequence[tuple[str, Any]] = ()) -> RunConfig:
    """Defaults, then the file, then the overrides: later wins.

    Args:
        path: a YAML file of nested mappings.
        overrides: (dotted key, value) pairs; a value may be text, which is read as YAML.

    Raises:
        FasttuneError: the file cannot be read, or a key or value is not known.
    """
    values = _read_yaml(path) if path is not None else {}
    where = str(path) if path is not None else ""
    for key, value in overrides:
        _put(values, key, value)
    return _build(RunConfig, values, "", where)


def parse_override(text: str) -> tuple[str, Any]:
    """`train.learning_rate=1e-4` -> its key and value.

    Raises:
        FasttuneError: there is no `=`, or the value is no YAML.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise FasttuneError(
            f"'{text}' sets nothing", "on the command line", "write key=value, as train.epochs=2"
        )
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise FasttuneError(
            f"the value of {key} cannot be read: {value}", "on the command line", str(error)
        ) from error


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back to an equal one."""
    import yaml

    return yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)


def steps(rows: int, config: RunConfig) -> int:
    """Optimiser steps of a run over `rows` rows, as transformers' Trainer counts them."""
    chosen = config.train
    if chosen.max_steps is not None:
        return chosen.max_steps
    batches = math.ceil(rows / chosen.batch_size)
    per_epoch = max(1, math.ceil(batches / chosen.gradient_accumulation))
    return math.ceil(per_epoch * chosen.epochs)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FasttuneError(
            "cannot read the config", f"{path}: {error}", "give a YAML file; see configs/"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FasttuneError("the config is no mapping", str(path), "write lines of `key: value`")
    return values


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[leaf] = value


def _build(kind: type, values: Mapping[str, Any], prefix: str, where: str) -> Any:
    """An instance of the dataclass `kind` from a mapping, each value checked against its type."""
    hints = typing.get_type_hints(kind)
    built = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise FasttuneError(
                f"there is no setting '{key}'", where, did_you_mean(str(name), [*hints])
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                inner = [f"{key}.{inner.name}" for inner in dataclasses.fields(hints[name])]
                raise FasttuneError(
                    f"'{key}' groups settings and takes no value itself",
                    where,
                    f"set one of: {', '.join(inner)}",
                )
            built[name] = _build(typing.cast(type, hints[name]), value, f"{key}.", where)
        else:
            built[name] = _checked(key, value, hints[name], where)
    return kind(**built)


def _checked(key: str, value: Any, hint: Any, where: str) -> Any:
    try:
        converted = _convert(value, hint)
        in_range, wanted = _RANGES.get(key, (lambda _: True, ""))
        if converted is not None and not in_range(converted):
            raise ValueError(wanted)
    except ValueError as error:
        raise FasttuneError(f"'{key}' is {value!r}", where, f"it takes {error}") from error
    return converted


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; ValueError says what is wanted instead."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(value, arguments[0])
    if origin is Literal:
        # YAML 1.1 reads a bare on and off as booleans.
        word = (
            {True: "on", False: "off", None: "none"}.get(value, value)
            if not isinstance(value, str)
            else value
        )
        if word not in arguments:
            raise ValueError(f"one of {', '.join(arguments)}")
        return word
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError("a list, as [a, b] or a,b")
        return tuple(str(item).strip() for item in items if str(item).strip())
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError("a mapping, as {instruction: question}")
        return {str(k): str(v) for k, v in value.items()}
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError("a whole number")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if number != number or not number.is_integer():
            raise ValueError("a whole number")
        return int(number)
    if hint is float:
        # YAML 1.1 reads 1e-4 as text: it wants a dot in a number with an exponent.
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError("a number")
        try:
            return float(value)
        except ValueError:
            raise ValueError("a number") from None
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError("a text")
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
