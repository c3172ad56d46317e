"""Write a Phi-2 of full size with the published config and random weights: 2.78 B parameters, 5.6
GB in fp16.

    python tools/random_phi2.py FOLDER [--shard-gb 5] [--adapter FOLDER]

It is made on the meta device and written tensor by tensor, in little memory. `--adapter` also
writes a LoRA adapter (r=16, all linear layers) with random factors. The tokenizer is the one the
tests build from GPT-2's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PhiConfig, PhiForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import PHI2, build_phi2_tokenizer

TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard-gb", type=float, default=5.0)
    parser.add_argument("--adapter", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    config = PhiConfig.from_dict(PHI2)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in PhiForCausalLM(config).state_dict().items()}
    chosen.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(chosen.folder)
    build_phi2_tokenizer().save_pretrained(chosen.folder)
    write_shards(shapes, chosen.folder, int(chosen.shard_gb * 1e9))
    if chosen.adapter:
        write_adapter(shapes, chosen.adapter, chosen.folder)


def write_shards(shapes: Mapping[str, torch.Size], folder: Path, limit: int) -> None:
    """Random tensors in fp16, in files of at most `limit` bytes, with their index."""
    parts: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size + 2 * shape.numel() > limit:
            parts.append({})
            size = 0
        parts[-1][name] = shape
        size += 2 * shape.numel()
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = folder / f"model-{number:05}-of-{len(parts):05}.safetensors"
        weight_map |= dict.fromkeys(part, file.name)
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in part.items():
            end = offset + 2 * shape.numel()
            header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with file.open("wb") as stream:
            stream.write(len(encoded).to_bytes(8, "little") + encoded)
            for name, shape in part.items():
                stream.write(random_tensor(name, shape).view(torch.int16).numpy().tobytes())
        print(file, f"{file.stat().st_size / 1e9:.2f} GB")
    index = {"metadata": {"total_size": 2 * sum(s.numel() for s in shapes.values())}}
    text = json.dumps({**index, "weight_map": weight_map}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def random_tensor(name: str, shape: torch.Size) -> torch.Tensor:
    """Normal with a deviation of 0.02, as Phi-2 was initialised; layer norms near 1."""
    tensor = torch.empty(shape).normal_(0, 0.02).half()
    return tensor + 1 if name.endswith("norm.weight") else tensor


def write_adapter(
    shapes: Mapping[str, torch.Size], folder: Path, base: Path, rank: int = 16
) -> None:
    """A LoRA adapter as PEFT writes it, both factors random."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in TARGETS and len(shape) == 2:
            for factor, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
                key = f"base_model.model.{module}.lora_{factor}.weight"
                factors[key] = torch.randn(size) * 0.02
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 16,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    build_phi2_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
