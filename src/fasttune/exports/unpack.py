"""Write a base that is stored in NF4 with its weights dequantised, one tensor at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fasttune.files import write_json
from fasttune.machine import tensor_device
from fasttune.models.whole import INDEX, tensors_of

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def unpack(files: list[Path], folder: Path) -> None:
    """Write shards of bitsandbytes' NF4 weights into a folder as plain safetensors. A weight gets
    the dtype that it had before it was quantised."""
    places: dict[str, str] = {}
    for file in files:
        names = tensors_of(file)
        with safe_open(file, framework="pt") as stored:
            states = {
                name.partition(".quant_state.")[0]: json.loads(bytes(stored.get_tensor(name)))
                for name in names
                if ".quant_state." in name
            }
            kept = [name for name in names if not any(name.startswith(f"{w}.") for w in states)]
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            start = 0
            for name in kept:
                entry = names[name]
                kind, shape = entry["dtype"], entry["shape"]
                first, end = entry["data_offsets"]
                size = end - first
                if state := states.get(name):
                    kind, shape = NAMES[state["dtype"]], state["shape"]
                    size = math.prod(shape) * BYTES[kind]
                header[name] = {
                    "dtype": kind, "shape": shape, "data_offsets": [start, start + size]
                }  # fmt: skip
                start += size
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with (folder / file.name).open("wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name in kept:
                    tensor = stored.get_tensor(name)
                    if name in states:
                        parts = [key for key in names if key.startswith(f"{name}.")]
                        beside = {key[len(name) + 1 :]: stored.get_tensor(key) for key in parts}
                        tensor = _dequantised(tensor, beside)
                    out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        places |= dict.fromkeys(kept, file.name)
    if len(files) > 1:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def _dequantised(packed: torch.Tensor, beside: dict[str, torch.Tensor]) -> torch.Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    device = torch.device(tensor_device())
    state = QuantState.from_dict(beside, device)
    return dequantize_4bit(packed.to(device), state).cpu()
