"""Write a base that is stored in NF4 with its weights dequantised, one tensor at a time."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
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
    the dtype that it had before it was quantised. What belongs to it may lie in another shard."""
    with ExitStack() as stack:
        places: dict[str, str] = {}
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
        holder = {name: stored for stored in opened.values() for name in stored.keys()}  # noqa: SIM118
        beside: dict[str, list[str]] = {}
        for name in holder:
            if ".quant_state." in name:
                weight = name.partition(".quant_state.")[0]
                beside[weight] = [each for each in holder if each.startswith(f"{weight}.")]
        left_out = {name for names in beside.values() for name in names}
        for file in files:
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            start = 0
            for name, entry in tensors_of(file).items():
                if name in left_out:
                    continue
                kind, shape = entry["dtype"], entry["shape"]
                size = entry["data_offsets"][1] - entry["data_offsets"][0]
                if name in beside:
                    key = next(key for key in beside[name] if ".quant_state." in key)
                    state = json.loads(bytes(holder[key].get_tensor(key)))
                    kind, shape = NAMES[state["dtype"]], state["shape"]
                    size = math.prod(shape) * BYTES[kind]
                offsets = [start, start := start + size]
                header[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
                places[name] = file.name
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with (folder / file.name).open("wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                for name in [*header][1:]:
                    tensor = opened[file].get_tensor(name)
                    if name in beside:
                        keys = {key[len(name) + 1 :]: key for key in beside[name]}
                        parts = {part: holder[key].get_tensor(key) for part, key in keys.items()}
                        tensor = _dequantised(tensor, parts)
                    out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        if len(files) > 1:
            write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def _dequantised(packed: torch.Tensor, beside: dict[str, torch.Tensor]) -> torch.Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    device = torch.device(tensor_device())
    state = QuantState.from_dict(beside, device)
    return dequantize_4bit(packed.to(device), state).cpu()
