"""Read settings from YAML and the command line into frozen dataclasses with bounds.

default.yaml explains every setting. In the repository, it is configs/default.yaml."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import NAME, absolute
from fasttune.terminal import visible
from fasttune.yaml_text import (
    CHARACTERS,
    Filled,
    Finite,
    Text,
    Texts,
    read_yaml,
    read_yaml_file,
    refused,
    setting,
    shortened,
)

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the precisions."""
PRECISIONS = {dtype: word for word, dtype in DTYPES.items()}

MANY, SEEDS = 10**6, 2**32 - 1
Seed = Annotated[int, Meta(ge=0, le=SEEDS)]
Number = Annotated[int, Meta(ge=1, le=MANY)]
Large = Annotated[int, Meta(ge=1, le=1000 * MANY)]
Positive = Annotated[float, Meta(gt=0, le=MANY)]
Share = Annotated[float, Meta(ge=0, lt=1)]

TemplateName = Annotated[str, Meta(
    pattern=rf"^(?:{NAME.pattern}|{CHARACTERS}\.ya?ml)\Z",
    description="a name of letters, digits, - _ and ., not starting with a dot, or a .yaml file",
)]  # fmt: skip
Columns = Annotated[dict[Text, Text], Meta(description="a mapping, as {instruction: question}")]
Options = Annotated[dict[Text, Finite], Meta(description="numbers by name, as {min_lr_rate: 0.1}")]
Weight = Annotated[float, Meta(gt=0, le=MANY, description=f"a weight above 0 to {MANY}")]

AUTO = "auto"
"""In place of a template's name: the one that the rows suggest."""
Switch = Literal["auto", "on", "off"]
Auto = Literal["auto"]
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
]  # fmt: skip
"""The names in transformers' SchedulerType. Importing them from there would import torch."""
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class ModelConfig:
    name: Filled | None = None
    max_length: Annotated[int, Meta(ge=1, le=10 * MANY)] = 1024
    quantization: Literal["auto", "nf4", "none"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    fast_path: Switch = "auto"
    nf4_copy: Switch = "auto"
    dropout: Literal["off", "config"] = "off"


@dataclass(frozen=True)
class LoraConfig:
    r: Annotated[int, Meta(ge=1, le=2**16)] = 16
    alpha: Positive = 16.0
    dropout: Share = 0.0
    rslora: bool = False
    dora: bool = False
    targets: Texts = ()


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources. It gives `count` rows, a share by `weight`, or else all rows."""

    name: Text = ""
    split: Text | None = None
    columns: Columns = field(default_factory=dict)
    count: Annotated[int, Meta(ge=1, description="a count of 1 or more")] | None = None
    weight: Weight | None = None


@dataclass(frozen=True)
class DataConfig:
    train: Filled | None = None
    split: Filled = "train"
    sources: tuple[SourceConfig, ...] = ()
    eval: Filled | None = None
    eval_split: Filled | None = None
    eval_fraction: Share = 0.05
    split_seed: Seed = 0
    columns: Columns = field(default_factory=dict)
    limit: Large | None = None
    drop_duplicates: bool = False
    skip_bad_rows: bool = False
    turns: Literal["all", "first"] = "all"
    overlong: Literal["drop", "truncate", "error"] = "drop"


@dataclass(frozen=True)
class TrainConfig:
    epochs: Positive | Auto = "auto"
    max_steps: Large | None = None
    batch_size: Number = 4
    gradient_accumulation: Number = 1
    packing: bool = True
    learning_rate: Annotated[float, Meta(gt=0, le=100)] | Auto = "auto"
    schedule: Schedule = "cosine"
    schedule_options: Options = field(default_factory=dict)
    warmup_steps: Annotated[int, Meta(ge=0, le=1000 * MANY)] | Auto = "auto"
    warmup_ratio: Share = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=100)] = 0.0
    max_grad_norm: Positive = 1.0
    neftune_noise_alpha: Annotated[float, Meta(gt=0, le=10**4)] | None = None
    optimizer: Filled = "auto"
    gradient_checkpointing: Literal["auto", "unsloth", "on", "off"] = "auto"
    ignore_plan: bool = False
    learn_eos: bool = True
    log_steps: Large = 1
    eval_steps: Large | None = None
    eval_batch_size: Number = 4
    early_stopping: Number | None = None
    save_steps: Large | None = None
    save_minutes: Positive | None = 5.0
    save_total_limit: Number = 2
    report_to: tuple[Tracker, ...] = ()


@dataclass(frozen=True)
class SamplesConfig:
    count: Annotated[int, Meta(ge=0, le=MANY)] = 6
    max_new_tokens: Number = 128
    batch_size: Number = 6
    by: Texts = ()


@dataclass(frozen=True)
class RunConfig:
    template: TemplateName = AUTO
    system: Text | None = None
    seed: Seed = 3407
    output: Filled = "runs"
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    samples: SamplesConfig = SamplesConfig()

    def as_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, for YAML and JSON."""
        values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return values


class Override(NamedTuple):
    """A setting from outside the file. `origin` says where it was given, such as "--model phi"."""

    key: str
    value: Any
    origin: str = ""


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str | Override | tuple[str, Any]] = (),
    base: RunConfig | None = None,
) -> RunConfig:
    """Combine the defaults, the file and the overrides. Later values win.

    Args:
        path: a YAML file of nested mappings.
        overrides: "KEY=VALUE" as on the command line, or (key, value).
        base: settings instead of a file's, such as those of a run.
    """
    values, lines = (base.as_dict() if base else {}), dict[str, int]()
    if path is not None:
        values, lines = read_yaml_file(Path(path), "the config")
    if not isinstance({} if values is None else values, dict):
        raise FasttuneError("the config is not a mapping", str(path), "write lines of `key: value`")
    values, places = values or {}, {key: f"{path}, line {line}" for key, line in lines.items()}
    places[""] = str(path or "")
    for override in overrides:
        parsed = parse_override(override) if isinstance(override, str) else Override(*override)
        key, value, origin = parsed
        *groups, leaf = key.split(".")
        group = values
        for name in groups:
            group[name] = group[name] if isinstance(group.get(name), dict) else {}
            group = group[name]
        group[leaf] = value
        places = {k: place for k, place in places.items() if not f"{k}.".startswith(f"{key}.")}
        for name in accumulate(key.split("."), "{}.{}".format):
            places.setdefault(name, origin or key)
    return _build(RunConfig, values, places)


def build_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build the config of a mapping from `RunConfig.as_dict`; an error names `where`."""
    return _build(RunConfig, values, {"": where})


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    """Return the config with some training settings changed."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to the values of nested settings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        group = isinstance(value, dict) and key not in ("columns", "schedule_options")
        flat |= flatten(value, f"{prefix}{key}.") if group else {f"{prefix}{key}": value}
    return flat


def in_full(config: RunConfig) -> RunConfig:
    """Return the config with absolute paths, so that it does not depend on the current folder."""
    model, data, replace = config.model, config.data, dataclasses.replace
    name, train, held_out = (
        path and absolute(path) for path in (model.name, data.train, data.eval)
    )
    sources = tuple(replace(source, name=absolute(source.name)) for source in data.sources)
    data = replace(data, train=train, eval=held_out, sources=sources)
    return replace(config, model=replace(model, name=name), data=data)


def parse_override(text: str) -> Override:
    """Parse `train.learning_rate=1e-4` into its key and value."""
    key, equals, value = text.partition("=")
    if not equals or not key.partition(".")[0]:  # "" would be all settings
        hint = "write key=value, such as train.epochs=2"
        raise FasttuneError(f"'{text}' is not a setting", "on the command line", hint)
    try:
        return Override(key, read_yaml(value)[0], text)
    except ValueError as error:
        raise FasttuneError(f"the value of {key} cannot be read", text, str(error)) from error


def dump_config(config: RunConfig) -> str:
    """Write the config as YAML. `load_config` reads it back to an equal config."""
    import yaml

    text = yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True)
    return text if text == visible(text) else yaml.safe_dump(config.as_dict(), sort_keys=False)


def commented(config: RunConfig, command: str) -> str:
    """Write default.yaml, which explains every setting, with the values of a config. The first line
    is the command that uses the file."""
    import yaml

    text = Path(__file__).with_name("default.yaml").read_text(encoding="utf-8")
    values, defaults = flatten(config.as_dict()), flatten(RunConfig().as_dict())
    lines = [f"# {command}", *text.splitlines()[1:]]
    for key, number in read_yaml(text)[1].items():
        match = re.match(r"( *\w+: *).*?(?=  +#|$)", lines[number - 1])
        if match is None or key not in values or values[key] == defaults[key]:
            continue
        dumped = yaml.safe_dump(
            values[key], default_flow_style=True, allow_unicode=True, width=math.inf,
            sort_keys=False,
        )  # fmt: skip
        written = match[1] + dumped.removesuffix("\n").removesuffix("\n...")
        comment = lines[number - 1][match.end() :].lstrip()
        width = len(lines[number - 1]) - len(comment) - len(written)  # keep the comment's column
        lines[number - 1] = written + " " * max(2, width) * bool(comment) + comment
    return "\n".join(lines) + "\n"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their bounds."""
    return typing.get_type_hints(kind, include_extras=True)


SETTINGS = tuple(flatten(RunConfig().as_dict()))
"""The dotted key of each setting."""


ABBREVIATIONS = {
    "lr": "learning_rate", "rank": "r", "lora_r": "r", "lora_alpha": "alpha", "steps": "max_steps",
    "num_train_epochs": "epochs", "max_seq_length": "max_length", "max_seq_len": "max_length",
}  # fmt: skip
"""What other programs call a setting -> the last part of its key."""


def _origin(places: Mapping[str, str], key: str) -> str:
    """Return where a setting, or the closest group around it, comes from."""
    while key not in places:
        key = key.rpartition(".")[0]
    return places[key]


def _build(
    kind: Any, values: Mapping[Any, Any], places: Mapping[str, str], prefix: str = ""
) -> Any:
    """Build the dataclass `kind` from values that may be wrong.

    Args:
        places: dotted key -> where it was set; "" for keys that are not in it.
    """
    hints, converted = _hints(kind), {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        where = _origin(places, key)
        if name not in hints:
            raise FasttuneError(f"there is no setting '{key}'", where, _suggest(str(name), kind))
        if key == "data.sources":
            converted[name] = _sources(value, places)
        elif not dataclasses.is_dataclass(hints[name]):
            converted[name] = setting(key, value, hints[name], where)
        elif isinstance(value, Mapping):
            converted[name] = _build(hints[name], value, places, f"{key}.")
        else:
            settings = ", ".join(f"{key}.{inner}" for inner in _hints(hints[name]))
            what = f"'{key}' groups settings and has no value itself"
            raise FasttuneError(what, where, f"set one of: {settings}")
    return kind(**converted)


def _suggest(name: str, kind: type) -> str:
    """Name the setting that was probably meant, with its group if that is another one."""
    if name in SETTINGS:
        group, _, name = name.rpartition(".")
        if not group:
            return f"did you mean '{name}', outside of any group?"
        return f"write '{name}' indented below '{group}:'"
    siblings, keys = [*_hints(kind)], close_settings(name)
    close = difflib.get_close_matches(name, siblings)
    known = any(key.rpartition(".")[2] in (name, ABBREVIATIONS.get(name)) for key in keys)
    if kind is SourceConfig or (close and not known) or not keys:
        return did_you_mean(name, siblings)
    return f"did you mean {' or '.join(map(repr, keys))}?"


def close_settings(name: str, exactly: bool = False) -> list[str]:
    """The keys of the settings that a name without its group, or a misspelt one, may mean."""
    name = ABBREVIATIONS.get(name, name)
    leaves = {key.rpartition(".")[2] for key in SETTINGS}
    close = difflib.get_close_matches(name, leaves, n=1, cutoff=1 if exactly else 0.6)
    keys = [key for key in SETTINGS if key.rpartition(".")[2] in close]
    return keys or ([] if exactly else difflib.get_close_matches(name, SETTINGS, n=1))


def _sources(value: Any, places: Mapping[str, str]) -> tuple[SourceConfig, ...]:
    """Build the sources of the rows. A text alone is the name of a source."""
    key, example, sources = "data.sources", "{name: rows.jsonl, weight: 2}", list[SourceConfig]()
    where = _origin(places, key)
    if not isinstance(value, (list, tuple)):
        raise refused(key, value, where, f"a list, as [{example}, other.jsonl]")
    for number, item in enumerate(value):
        place = _origin(places, f"{key}.{number}")
        fields = {"name": item} if isinstance(item, str) else item
        fields = vars(item) if isinstance(item, SourceConfig) else fields
        if not isinstance(fields, Mapping):
            raise FasttuneError(f"'{key}' holds {shortened(item)}", place, f"write {example}")
        sources.append(_build(SourceConfig, fields, {"": place}, f"{key}."))
    if not all(source.name.strip() for source in sources):
        wanted = f"sources that have a name, as {example}"
    elif any(None not in (source.count, source.weight) for source in sources):
        wanted = "a count or a weight for a source, not both"
    elif len({source.weight is None for source in sources}) > 1:
        wanted = "a weight for each source, or for none"
    else:
        return tuple(sources)
    raise refused(key, [source.name for source in sources], where, wanted)
