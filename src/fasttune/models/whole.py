"""Find damaged files in a model or adapter folder before a library loads them: libraries raise
errors of many types for a damaged file, and none names the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from fasttune.errors import FasttuneError
from fasttune.models.architectures import FAMILIES
from fasttune.records import read_json

RECOPY = "copy or download the file again"
INDEX = "model.safetensors.index.json"
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "adapter_config.json",
    INDEX,
)
"""Files that libraries read as JSON objects, if they exist."""


Size = Annotated[int, Meta(ge=1, le=10**7)]
Sizes = Size | list[Size] | None
Blocks = Annotated[int, Meta(ge=1, le=10**4)]
Scale = Annotated[float, Meta(gt=0, le=10**9)]


class TextConfig(TypedDict, total=False):
    """The numbers in a config.json that decide how much is computed and allocated."""

    num_hidden_layers: Blocks
    n_layer: Blocks
    hidden_size: Size
    n_embd: Size
    intermediate_size: Sizes
    num_attention_heads: Sizes
    num_key_value_heads: Sizes
    n_head: Size
    head_dim: Size | None
    vocab_size: Size
    max_position_embeddings: Annotated[int, Meta(ge=1, le=10**9)] | None
    n_positions: Size
    partial_rotary_factor: Annotated[float, Meta(gt=0, le=1)] | None
    rope_theta: Scale | None
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)]
    layer_norm_eps: Annotated[float, Meta(ge=0, le=1)]


class ModelConfig(TextConfig, total=False):
    """A config.json; one of several modalities has the text's numbers apart."""

    text_config: TextConfig


Name = Annotated[
    str, Meta(pattern=r"^[\w.-]{1,200}\Z", description="a module's name, not a regular expression")
]
Names = list[Name] | None


class _Adapter(TypedDict):
    peft_type: str
    r: Annotated[int, Meta(ge=1, le=2**16)]
    lora_alpha: Scale


class AdapterConfig(_Adapter, total=False):
    """The keys of an adapter_config.json that fasttune checks. PEFT searches the names as regular
    expressions, which could run for ever."""

    target_modules: list[Name]
    exclude_modules: Names
    layers_pattern: Names
    modules_to_save: Names
    rank_pattern: dict[Name, Size]
    alpha_pattern: dict[Name, Scale]


SCHEMAS: dict[str, Any] = {"config.json": ModelConfig, "adapter_config.json": AdapterConfig}


class TensorEntry(TypedDict):
    """An entry in the header of a safetensors file; its data are the bytes [start, end)."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def require_whole(folder: Path) -> None:
    """Refuse a folder of a model, a tokenizer or an adapter with JSON that does not parse, or
    weights that are truncated, missing or of another model. The error names the first file."""
    settings: dict[str, dict[str, Any]] = {
        name: read_json(folder / name, SCHEMAS.get(name, dict[str, Any]), RECOPY)
        for name in JSON_FILES
        if (folder / name).exists()
    }
    if (adapter := settings.get("adapter_config.json")) is not None:
        _require_adapter(folder, adapter)
    tensors = {file.name: tensors_of(file) for file in sorted(folder.glob("*.safetensors"))}
    names: Iterable[str] | None = tensors.get("model.safetensors")
    if (index := settings.get(INDEX)) is not None:
        try:
            names = places = msgspec.convert(index.get("weight_map"), dict[str, str])
        except msgspec.ValidationError as error:
            raise _damaged_weights(folder / INDEX, f"weight_map: {error}") from error
        for name, file in places.items():
            if file not in tensors:
                raise _damaged_weights(folder / INDEX, f"names {file}, which is missing")
            if name not in tensors[file]:
                raise _damaged_weights(folder / file, f"lacks {name}, which {INDEX} names")
    if names is not None:
        _require_layers(folder, settings.get("config.json", {}), names)


def _require_adapter(folder: Path, config: Mapping[str, Any]) -> None:
    weights = folder / "adapter_model.safetensors"
    if weights.exists():
        return require_finite(weights)
    if config["peft_type"] != "LORA":
        return
    pickled = folder / "adapter_model.bin"
    raise FasttuneError(
        "the adapter has no adapter_model.safetensors",
        f"{pickled}: a pickle, which can run code" if pickled.exists() else str(folder),
        "restore the file; fasttune does not load an adapter from a pickle",
    )


def _require_layers(folder: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse weights that do not match the config, for known architectures without quantization.
    transformers fills a missing matrix with random numbers, and ignores blocks beyond the config's
    number."""
    family, blocks = FAMILIES.get(str(config.get("model_type"))), config.get("num_hidden_layers")
    if family is None or not isinstance(blocks, int) or "quantization_config" in config:
        return
    matrices: dict[int, set[str]] = {}
    for name in names:
        if match := re.search(r"\blayers\.([0-9]+)\.(?:.+\.)?(\w+)\.weight$", name):
            matrices.setdefault(int(match[1]), set()).add(match[2])
    missing = [
        f"{target} of block {block}"
        for block in range(blocks)
        for target in family.targets
        if target not in matrices.get(block, ())
    ]
    if missing or len(matrices) > blocks:
        raise FasttuneError(
            "the weights do not match config.json",
            f"{folder}: {missing[0]} is missing"
            if missing
            else f"{folder}: {len(matrices)} blocks instead of {blocks}",
            "use config.json and all weight files of the same model",
        )


def tensors_of(file: Path) -> dict[str, TensorEntry]:
    """Read the header of a safetensors file; offsets count from the beginning of the file."""
    try:
        with safe_open(file, framework="np"):
            pass  # checks the header against the size of the file
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries: dict[str, TensorEntry] = json.loads(stream.read(length))
    except (OSError, SafetensorError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise _damaged_weights(file, f"not a complete safetensors file: {reason}") from error
    entries.pop("__metadata__", None)
    for entry in entries.values():
        start, end = entry["data_offsets"]
        entry["data_offsets"] = (8 + length + start, 8 + length + end)
    return entries


def read_config(file: Path) -> dict[str, Any]:
    """Read a model's config.json; numbers that no model has are refused."""
    value: dict[str, Any] = read_json(file, ModelConfig, RECOPY)
    return value


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json about text: that of a model of one modality is the whole."""
    text: dict[str, Any] = config.get("text_config") or config
    return text


def read_object(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file that may be damaged."""
    value: dict[str, Any] = read_json(file, dict[str, Any], RECOPY)
    return value


EXPONENTS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}
"""dtype -> an unsigned type of its size, and the bits that only NaN and infinity have all set."""
CHUNK = 2**22


def require_finite(file: Path) -> None:
    """Refuse a safetensors file with NaN or infinity: one makes every answer nonsense."""
    import numpy as np

    with file.open("rb") as stream:
        for name, entry in tensors_of(file).items():
            if entry["dtype"] not in EXPONENTS:
                continue
            kind, exponent = EXPONENTS[entry["dtype"]]
            place, end = entry["data_offsets"]
            for start in range(place, end, CHUNK):
                stream.seek(start)
                bits = np.frombuffer(stream.read(min(CHUNK, end - start)), kind)
                if bool(((bits & exponent) == exponent).any()):
                    raise FasttuneError(
                        "the weights contain NaN or infinity, so every answer would be nonsense",
                        f"{file}: {name}",
                        f"{RECOPY}; if it is the same again, choose another model",
                    )


def _damaged_weights(file: Path, how: str) -> FasttuneError:
    return FasttuneError(f"{file.name} is damaged", f"{file}: {how}", RECOPY)
