"""Model and adapter folders with damaged files are told before a library meets them: each library
has another exception for that, and none names the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from fasttune.errors import FasttuneError
from fasttune.models.architectures import FAMILIES
from fasttune.records import read_json

AGAIN = "copy or download it once more"

QUANTISED = "quantization_config"
"""The key of a config whose weights are packed."""
INDEX = "model.safetensors.index.json"
SETTINGS = (
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
"""Files that libraries read as JSON objects, where they are there."""
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
    "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Of an element, by safetensors' names of the types."""


class AdapterConfig(TypedDict):
    """What is read of PEFT's adapter_config.json."""

    peft_type: str
    r: int
    lora_alpha: float


class Tensor(TypedDict):
    """An entry in the header of a safetensors file: the tensor's bytes are [start, end) of the
    file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def require_whole(folder: Path) -> None:
    """Refuse a folder that holds a damaged file of a model, a tokenizer or an adapter: settings
    that are no JSON, or weights that are cut, or that the index names and that are missing.

    Raises:
        FasttuneError: the first such file, and what is wrong with it.
    """
    files = ((file, file.stat()) for file in sorted(folder.iterdir()) if file.is_file())
    _require_whole(folder, tuple((f.name, s.st_mtime_ns, s.st_size) for f, s in files))


@lru_cache(maxsize=16)
def _require_whole(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> None:
    """Once for files with the same stamps: a run comes here three times, and a tokenizer.json of
    50,000 tokens takes a tenth of a second."""
    settings = {name: read_object(folder / name) for name in SETTINGS if (folder / name).exists()}
    if found := settings.get("adapter_config.json"):
        read_json(folder / "adapter_config.json", AdapterConfig, AGAIN)
        if found["peft_type"] == "LORA" and not (folder / "adapter_model.safetensors").exists():
            pickled = (folder / "adapter_model.bin").exists()
            raise FasttuneError(
                "the adapter has no adapter_model.safetensors",
                str(folder / "adapter_model.bin") + ": a pickle, which can run code"
                if pickled
                else str(folder),
                "restore it; an adapter in a pickle is not loaded",
            )
    tensors = {file.name: tensors_of(file) for file in sorted(folder.glob("*.safetensors"))}
    if (index := settings.get(INDEX)) is None:
        _require_layers(folder, settings.get("config.json", {}), tensors.get("model.safetensors"))
        return
    try:
        places = msgspec.convert(index.get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        raise _damaged(folder / INDEX, f"weight_map: {error}") from error
    for name, file in places.items():
        if file not in tensors:
            raise _damaged(folder / INDEX, f"names {file}, which is missing")
        if name not in tensors[file]:
            raise _damaged(folder / file, f"lacks {name}, which {INDEX} names")
    _require_layers(folder, settings.get("config.json", {}), places)


def _require_layers(folder: Path, config: Mapping[str, Any], names: Iterable[str] | None) -> None:
    """Refuse weights without a matrix of the decoder blocks, which transformers would make up at
    random, or with more blocks than the config has, which it would leave out; either goes without
    an error. Where the architecture is not known, or the weights are quantised, it is not seen."""
    family, blocks = FAMILIES.get(str(config.get("model_type"))), config.get("num_hidden_layers")
    if names is None or family is None or not isinstance(blocks, int) or QUANTISED in config:
        return
    found: dict[int, set[str]] = {}
    for name in names:
        if match := re.search(r"\blayers\.([0-9]+)\.(?:.+\.)?(\w+)\.weight$", name):
            found.setdefault(int(match[1]), set()).add(match[2])
    lacking = [
        f"{target} of block {block}"
        for block in range(blocks)
        for target in family.targets
        if target not in found.get(block, ())
    ]
    if lacking or len(found) > blocks:
        raise FasttuneError(
            "the weights are not those that config.json tells of",
            f"{folder}: {lacking[0]} is missing"
            if lacking
            else f"{folder}: {len(found)} blocks instead of {blocks}",
            "take weights and settings of one model, all of them",
        )


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The header of a safetensors file, held against the file's size, with offsets from the file's
    beginning instead of the header's end.

    Raises:
        FasttuneError: it is damaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise _damaged(file, f"is no safetensors file, or cut: {size} bytes")
            header = json.loads(stream.read(length).decode())
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        found = msgspec.convert(header, dict[str, Tensor])
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"its header cannot be read: {error}") from error
    begin = at = 8 + length
    for name, entry in sorted(found.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (begin + offset for offset in entry["data_offsets"])
        entry["data_offsets"] = (start, end)
        bits = BITS.get(entry["dtype"])
        if (
            start != at
            or end < start
            or bits
            and bits * math.prod(entry["shape"]) != 8 * (end - at)
        ):
            raise _damaged(file, f"{name} is not where its header says")
        at = end
    if at != size:
        raise _damaged(file, f"is cut: {size} bytes instead of {at}")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FasttuneError: it is damaged.
    """
    found: dict[str, Any] = read_json(file, dict[str, Any], AGAIN)
    return found


def _damaged(file: Path, how: str) -> FasttuneError:
    return FasttuneError(f"{file.name} is damaged", f"{file}: {how}", AGAIN)
