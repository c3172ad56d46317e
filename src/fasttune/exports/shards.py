"""The weight files of a model folder: where their tensors lie, read and overwritten one by one.

A safetensors file is 8 bytes with the length of the header (little endian), the header as JSON
(name -> dtype, shape, [start, end) after the header), then the raw tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fasttune import hub
from fasttune.errors import FasttuneError
from fasttune.models.tokenizer import cannot_load
from fasttune.models.whole import INDEX, read_object, tensors_of

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BESIDES = ("LICENSE*", "NOTICE*", "*.py")
"""What of a base goes along with its weights: the licence asks for it, and custom code is needed to
load them."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: bytes [start, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def base_folder(name: str) -> Path:
    """Return the folder with a base's files: `name` itself, or its snapshot in the Hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", *BESIDES]
    try:
        return hub.local_first(snapshot_download, name, allow_patterns=wanted)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error


def shards(folder: Path) -> list[Path]:
    """Return the safetensors of a model folder, in order."""
    if (folder / INDEX).is_file():
        index = read_object(folder / INDEX)
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise FasttuneError(
        "the base holds no safetensors",
        str(folder),
        "load it with transformers, save it with save_pretrained and train on that folder",
    )


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """Name -> place of every tensor in the files, from their headers alone."""
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for file in files
        for name, entry in tensors_of(file).items()
    }


def read_tensor(stream: Any, place: Stored) -> torch.Tensor:
    """The tensor at a place of an open file."""
    data = bytearray(place.end - place.start)
    stream.seek(place.start)
    stream.readinto(data)
    return torch.frombuffer(data, dtype=DTYPES[place.dtype]).reshape(place.shape)


def write_tensor(stream: Any, place: Stored, tensor: torch.Tensor) -> None:
    """Overwrite the tensor at a place of an open file with one of the same shape."""
    stored = tensor.to(DTYPES[place.dtype]).contiguous().reshape(-1)
    stream.seek(place.start)
    stream.write(memoryview(stored.view(torch.uint8).numpy()))
