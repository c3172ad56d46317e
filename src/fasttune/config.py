"""YAML and command-line overrides -> frozen dataclasses. Every setting is explained in
default.yaml, which is configs/default.yaml in the repository."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.files import absolute, valid_name

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the precisions."""
PRECISIONS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True)
class ModelConfig:
    name: str | None = None
    max_length: int = 1024
    quantization: Literal["auto", "nf4", "none"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    fast_path: Literal["auto", "on", "off"] = "auto"
    nf4_copy: Literal["auto", "on", "off"] = "auto"
    dropout: Literal["off", "config"] = "off"


@dataclass(frozen=True)
class LoraConfig:
    r: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources: all of its rows, `count` of them, or by `weight` its share."""

    name: str = ""
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    count: int | None = None
    weight: float | None = None


@dataclass(frozen=True)
class DataConfig:
    train: str | None = None
    split: str = "train"
    sources: tuple[SourceConfig, ...] = ()
    eval: str | None = None
    eval_split: str | None = None
    eval_fraction: float = 0.05
    split_seed: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    drop_duplicates: bool = False
    skip_bad_rows: bool = False
    turns: Literal["all", "first"] = "all"
    overlong: Literal["drop", "truncate", "error"] = "drop"


@dataclass(frozen=True)
class TrainConfig:
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    gradient_accumulation: int = 1
    packing: bool = True
    learning_rate: float = 2e-4
    schedule: str = "cosine"
    schedule_options: dict[str, float] = field(default_factory=dict)
    warmup_steps: int = 5
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    neftune_noise_alpha: float | None = None
    optimizer: str = "auto"
    gradient_checkpointing: Literal["auto", "unsloth", "on", "off"] = "auto"
    ignore_plan: bool = False
    learn_eos: bool = True
    log_steps: int = 1
    eval_steps: int | None = None
    eval_batch_size: int = 4
    early_stopping: int | None = None
    save_steps: int | None = None
    save_minutes: float | None = 5.0
    save_total_limit: int = 2
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplesConfig:
    count: int = 6
    max_new_tokens: int = 128
    batch_size: int = 6
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    template: str = "reasoning"
    system: str | None = None
    seed: int = 3407
    output: str = "runs"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    samples: SamplesConfig = SamplesConfig()

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as YAML and JSON take them."""
        return _plain(dataclasses.asdict(self))


OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor",
    "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
    "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo",
    "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd",
    "apollo_adamw", "apollo_adamw_layerwise", "stable_adamw",
)  # fmt: skip
"""transformers' OptimizerNames, kept here because importing them imports torch."""

SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
)  # fmt: skip
"""transformers' SchedulerType, likewise."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

Check = Callable[[Any], None]
"""Raises ValueError, with what is wanted instead, for a value that a setting does not take."""


def whole(low: int, high: int) -> Check:
    """A whole number within bounds, both included."""

    def check(value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")

    return check


def number(low: float, high: float, above: bool = False, below: bool = False) -> Check:
    """A finite number within bounds, both included but for those that are `above` or `below`."""

    def check(value: Any) -> None:
        if not low <= value <= high or (above and value == low) or (below and value == high):
            start = f"above {low:g}" if above else f"from {low:g}"
            raise ValueError(f"a number {start} {'to below' if below else 'to'} {high:g}")

    return check


def one_of(known: Sequence[str]) -> Check:
    """A known word, or words of which each is known."""

    def check(value: Any) -> None:
        for word in [value] if isinstance(value, str) else value:
            if word not in known:
                raise ValueError(f"a known name; {did_you_mean(word, [*known])}")

    return check


def _filled(value: Any) -> None:
    if not value.strip():
        raise ValueError("a text that is not empty")


def _a_name(value: Any) -> None:
    if not valid_name(value):
        raise ValueError("a name: letters, digits, - _ and ., not starting with a dot")


def _sources(value: Any) -> None:
    weighted = [each.weight is not None for each in value]
    for each in value:
        if not each.name.strip():
            raise ValueError("sources that have a name, as {name: rows.jsonl, weight: 2}")
        if each.weight is not None and (each.count is not None or not 0 < each.weight <= MANY):
            raise ValueError(f"a weight above 0 and to {MANY}, or a count, of {each.name}")
        if each.count is not None and each.count < 1:
            raise ValueError(f"a count of 1 or more of {each.name}")
    if any(weighted) and not all(weighted):
        raise ValueError("a weight for each source, or for none")


MANY, SEEDS = 10**6, 2**32 - 1
CHECKS: dict[str, Check] = {
    "template": _a_name,
    "seed": whole(0, SEEDS),
    "output": _filled,
    "model.name": _filled,
    "model.max_length": whole(1, 10 * MANY),
    "lora.r": whole(1, 2**16),
    "lora.alpha": number(0, MANY, above=True),
    "lora.dropout": number(0, 1, below=True),
    "data.train": _filled,
    "data.split": _filled,
    "data.sources": _sources,
    "data.eval": _filled,
    "data.eval_split": _filled,
    "data.eval_fraction": number(0, 1, below=True),
    "data.split_seed": whole(0, SEEDS),
    "data.limit": whole(1, 1000 * MANY),
    "train.epochs": number(0, MANY, above=True),
    "train.max_steps": whole(1, 1000 * MANY),
    "train.batch_size": whole(1, MANY),
    "train.gradient_accumulation": whole(1, MANY),
    "train.learning_rate": number(0, 100, above=True),
    "train.schedule": one_of(SCHEDULES),
    "train.warmup_ratio": number(0, 1, below=True),
    "train.neftune_noise_alpha": number(0, 10**4, above=True),
    "train.warmup_steps": whole(0, 1000 * MANY),
    "train.weight_decay": number(0, 100),
    "train.max_grad_norm": number(0, MANY, above=True),
    "train.optimizer": one_of(("auto", *OPTIMIZERS)),
    "train.log_steps": whole(1, 1000 * MANY),
    "train.eval_steps": whole(1, 1000 * MANY),
    "train.eval_batch_size": whole(1, MANY),
    "train.early_stopping": whole(1, MANY),
    "train.save_steps": whole(1, 1000 * MANY),
    "train.save_minutes": number(0, MANY, above=True),
    "train.save_total_limit": whole(1, MANY),
    "train.report_to": one_of(TRACKERS),
    "samples.count": whole(0, MANY),
    "samples.max_new_tokens": whole(1, MANY),
    "samples.batch_size": whole(1, MANY),
}
"""What a setting takes beyond its type; with no key here its type says it all."""

FILE_BYTES, NESTING = 2**20, 20
"""What a config may have at the most: it is read whole, and by recursion."""


class Override(NamedTuple):
    """A setting given beside the file.

    Attributes:
        key: dotted, as "train.epochs".
        value: text is read as YAML where the setting takes no text.
        origin: where it was given, for messages, as "--model phi" or "train.epochs=2".
    """

    key: str
    value: Any
    origin: str = ""


def load_config(
    path: Path | None = None,
    overrides: Sequence[Override | tuple[str, Any]] = (),
    base: RunConfig | None = None,
) -> RunConfig:
    """Defaults, then the file, then the overrides: later wins.

    Args:
        path: a YAML file of nested mappings.
        overrides: also as (key, value).
        base: settings in place of the file's, as those of a run.

    Raises:
        FasttuneError: the file cannot be read, or a key or value is not known; it names the
            file with the line, or the override.
    """
    values, origins = _read_file(path) if path is not None else (base.as_dict() if base else {}, {})
    for key, value, origin in (Override(*each) for each in overrides):
        _put(values, key, value)
        origins = {k: o for k, o in origins.items() if not f"{k}.".startswith(f"{key}.")}
        origins[key] = origin or key
    return _build(RunConfig, values, "", _Origins(origins, str(path or "")))


def build_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a mapping such as `RunConfig.as_dict` gives.

    Raises:
        FasttuneError: a key or value is not known.
    """
    config: RunConfig = _build(RunConfig, values, "", _Origins({}, where))
    return config


def with_setting(config: RunConfig, key: str, value: Any, where: str) -> RunConfig:
    """The config with one more setting, given by its dotted key.

    Raises:
        FasttuneError: the key or the value is not known.
    """
    values = config.as_dict()
    _put(values, key, value)
    changed: RunConfig = _build(RunConfig, values, "", _Origins({}, where))
    return changed


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    """The config with other settings of its training."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and key not in ("columns", "schedule_options")
        found |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def in_full(config: RunConfig) -> RunConfig:
    """The config with its paths in full, for what does not depend on the folder one stands in."""
    name, train, held_out = (
        found and absolute(found)
        for found in (config.model.name, config.data.train, config.data.eval)
    )
    sources = tuple(
        dataclasses.replace(source, name=absolute(source.name)) for source in config.data.sources
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=name),
        data=dataclasses.replace(config.data, train=train, eval=held_out, sources=sources),
    )


def parse_override(text: str) -> Override:
    """`train.learning_rate=1e-4` -> its key and value.

    Raises:
        FasttuneError: there is no `=`, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise FasttuneError(
            f"'{text}' sets nothing", "on the command line", "write key=value, as train.epochs=2"
        )
    try:
        return Override(key, read_yaml(value)[0], text)
    except ValueError as error:
        raise FasttuneError(f"the value of {key} cannot be read", text, str(error)) from error


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back to an equal one."""
    import yaml

    return yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)


def commented(config: RunConfig, command: str) -> str:
    """default.yaml, where every setting is explained, with the values of a config.

    Args:
        command: for its first line, how a run takes it.
    """
    import yaml

    text = Path(__file__).with_name("default.yaml").read_text(encoding="utf-8")
    values, defaults = flatten(config.as_dict()), flatten(RunConfig().as_dict())
    lines, group = text.splitlines(), ""
    lines[0] = f"# {command}"
    for number, line in enumerate(lines):
        match = re.match(r"( *)(\w+):( *)(.*?)(?=  +#|$)", line)
        if match is None:
            continue
        indent, key, gap, written = match.groups()
        if not written:
            group = f"{key}."
            continue
        value = values[f"{group if indent else ''}{key}"]
        if value == defaults[f"{group if indent else ''}{key}"]:
            continue
        dumped = yaml.safe_dump(
            value, default_flow_style=True, allow_unicode=True, width=math.inf, sort_keys=False
        )
        new = dumped.removesuffix("\n").removesuffix("\n...")
        comment = line[match.end() :].lstrip()
        column = len(line) - len(comment)  # it stays there as far as it can
        start = f"{indent}{key}:{gap}{new}"
        lines[number] = start + " " * max(2, column - len(start)) * bool(comment) + comment
    return "\n".join(lines) + "\n"


def steps(rows: int, config: RunConfig, processes: int = 1) -> int:
    """Optimiser steps of a run over `rows` rows, as transformers' Trainer counts them.

    Args:
        processes: of the run; each adds as many rows to a step.
    """
    chosen = config.train
    if chosen.max_steps is not None:
        return chosen.max_steps
    batches = math.ceil(rows / chosen.batch_size)
    per_epoch = max(1, math.ceil(batches / (chosen.gradient_accumulation * processes)))
    return math.ceil(per_epoch * chosen.epochs)


def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """A YAML document of plain values, and the line of each key, dotted.

    Raises:
        ValueError: it is no YAML, nested more than NESTING deep, has a key twice or an alias.
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except Exception as error:  # scalars are made by int(), date() and others with errors of theirs
        said = str(error) if isinstance(error, yaml.YAMLError) else reason(error)
        raise ValueError(said) from error
    return value, dict(_lines(node))


@cache
def _loader() -> Any:
    """SafeLoader within bounds: what it would build of a small text can take all memory."""
    import yaml

    class Bounded(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark: Any = self.peek_event().start_mark
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="aliases (*name) are not taken", problem_mark=mark
                )
            if self.depth == NESTING:
                raise yaml.MarkedYAMLError(
                    problem=f"nested more than {NESTING} deep", problem_mark=mark
                )
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key '{key.value}' is there twice",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            return node

    return Bounded


def _lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The dotted keys below a YAML node with their lines, from 1."""
    for key, value in node.value if getattr(node, "id", "") == "mapping" else ():
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        yield from _lines(value, f"{name}.")


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a config file, and where each one stands."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise ValueError(f"it has more than {FILE_BYTES} bytes")
        values, lines = read_yaml(content.decode())
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise FasttuneError(
            "cannot read the config", f"{path}: {said}", "give a YAML file; see configs/"
        ) from error
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise FasttuneError("the config is no mapping", str(path), "write lines of `key: value`")
    return values, {key: f"{path}, line {line}" for key, line in lines.items()}


class _Origins(NamedTuple):
    """Where the settings come from: dotted key -> place, and the place of all others."""

    known: Mapping[str, str]
    other: str

    def of(self, key: str) -> str:
        """The place of a setting, of what holds it, or of what it holds."""
        parts = key.split(".")
        holders = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        held = (known for known in self.known if known.startswith(f"{key}."))
        return next((self.known[k] for k in (*holders, *held) if k in self.known), self.other)


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        if not isinstance(inner, dict):
            inner = values[parent] = {}
        values = inner
    values[leaf] = value


def _build(kind: type, values: Mapping[Any, Any], prefix: str, origins: _Origins) -> Any:
    """An instance of the dataclass `kind` from a mapping, each value checked against its type."""
    hints = typing.get_type_hints(kind)
    built = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise FasttuneError(
                f"there is no setting '{key}'", origins.of(key), did_you_mean(str(name), [*hints])
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                inner = [f"{key}.{inner.name}" for inner in dataclasses.fields(hints[name])]
                raise FasttuneError(
                    f"'{key}' groups settings and takes no value itself",
                    origins.of(key),
                    f"set one of: {', '.join(inner)}",
                )
            built[name] = _build(typing.cast(type, hints[name]), value, f"{key}.", origins)
        else:
            item = typing.get_args(hints[name])[:1]
            if item and dataclasses.is_dataclass(item[0]) and isinstance(value, (list, tuple)):
                value = tuple(_one(key, item[0], each, origins) for each in value)
            built[name] = _checked(key, value, hints[name], origins.of(key))
    return kind(**built)


def _one(key: str, kind: Any, value: Any, origins: _Origins) -> Any:
    """One of a list of settings that belong together; a text alone is its name."""
    if isinstance(value, kind):
        return value
    values = {"name": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping):
        raise FasttuneError(
            f"'{key}' holds {_shown(value)}", origins.of(key), "write {name: rows.jsonl, weight: 2}"
        )
    return _build(kind, values, f"{key}.", origins)


def _checked(key: str, value: Any, hint: Any, where: str) -> Any:
    try:
        converted = _convert(value, hint)
        if converted is not None and key in CHECKS:
            CHECKS[key](converted)
    except ValueError as error:
        raise FasttuneError(f"'{key}' is {_shown(value)}", where, f"it takes {error}") from error
    return converted


def _shown(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if isinstance(value, tuple) and value and isinstance(value[0], SourceConfig):
        value = [each.name for each in value]
    huge = isinstance(value, int) and abs(value) >= 10**100
    text = "a number of more than 100 digits" if huge else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; ValueError says what is wanted instead."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(value, arguments[0])
    if origin is Literal:
        # YAML 1.1 reads a bare on and off as booleans.
        word = {"True": "on", "False": "off", "None": "none"}.get(str(value), value)
        if not isinstance(word, str) or word not in arguments:
            raise ValueError(f"one of {', '.join(arguments)}")
        return word
    if origin is tuple and dataclasses.is_dataclass(arguments[0]):
        kind = typing.cast(type, arguments[0])
        if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
            raise ValueError("a list, as [{name: rows.jsonl, weight: 2}, other.jsonl]")
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError("a list, as [a, b] or a,b")
        return tuple(word for item in items if (word := _text(item).strip()))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(
                "a mapping, as {instruction: question}"
                if arguments[1] is str
                else "a mapping, as {min_lr_rate: 0.1}"
            )
        return {_text(key): _convert(inner, arguments[1]) for key, inner in value.items()}
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if hint in (int, float):
        return _number(value, hint)
    return _text(value)


def _number(value: Any, kind: type) -> int | float:
    """A number given as such or as a text: YAML 1.1 reads 1e-4 as text, it wants a dot in it."""
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(wanted)
    if kind is int and isinstance(value, int):
        return value
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(wanted) from None
    if kind is int and not number.is_integer():
        raise ValueError(wanted)
    return int(number) if kind is int else number


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError("a text")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text that UTF-8 can hold") from None
    if "\0" in text:
        raise ValueError("a text without NUL characters")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
