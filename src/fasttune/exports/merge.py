"""Merge an adapter into its base on disk, one tensor at a time.

A merged tensor has the shape and dtype of the base's. So a shard of the base is copied, and the
tensors that the adapter changes are overwritten in place: memory holds one of them at a time.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fasttune.encoding.encode import eos_id
from fasttune.errors import FasttuneError
from fasttune.exports.unpack import unpack
from fasttune.files import write_json
from fasttune.machine import tensor_device
from fasttune.models.base import BESIDES, base_folder, require_finite_weights, stored_as
from fasttune.models.tokenizer import saved_tokenizer
from fasttune.models.whole import INDEX, read_config, read_object, tensors_of

log = logging.getLogger(__name__)

NF4_BLOCK = 64
"""Weights per scale: bitsandbytes' default, which transformers and Unsloth keep."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """The place of a tensor: bytes [start, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass
class Change:
    """What an adapter does to one tensor of the base.

    Attributes:
        new: the tensor that takes its place, or None.
        a, b: LoRA's factors, [r, in] and [out, r], or None.
        magnitude: DoRA's length of each row of the result, [out], or None.
        transposed: the base holds [in, out].
    """

    scale: float = 1.0
    new: torch.Tensor | None = None
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    transposed: bool = False
    keys: list[str] = field(default_factory=list)

    def shape(self) -> tuple[int, ...]:
        if self.a is None or self.b is None:
            assert self.new is not None
            return tuple(self.new.shape)
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.transposed else shape

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """W + scale * B A in fp32 (arXiv:2106.09685); with DoRA, its rows at their magnitudes
        (arXiv:2402.09353)."""
        if self.new is not None:
            weight = self.new.float()
        if self.a is None or self.b is None:
            return weight
        delta = self.scale * (self.b.float() @ self.a.float())
        weight = weight + (delta.T if self.transposed else delta)
        if self.magnitude is None:
            return weight
        along = 0 if self.transposed else 1
        length = self.magnitude.float() / weight.norm(dim=along)
        return weight * length.unsqueeze(along)


def write_merged(
    base: str,
    adapter: Path,
    folder: Path,
    chat_template: str | None = None,
    dequantize: str | None = None,
) -> None:
    """Write base plus adapter as a model folder that transformers loads.

    Args:
        base: a folder or Hub name with safetensors; shards, index and dtypes are kept.
        adapter: a folder written by PEFT, with the tokenizer.
        folder: exists and is filled.
        chat_template: Jinja for the tokenizer, or None for none.
        dequantize: the dtype in which the base was quantised to NF4 ("bfloat16"); all linear
            layers are then rounded, and the update is added to the rounded weights. None merges
            into the base's own weights. A base that is stored in NF4 is dequantised anyway.
    """
    source = base_folder(base)
    require_finite_weights(base)
    config = read_config(source / "config.json")
    stored, files = stored_as(config.pop("quantization_config", None)), shards(source)
    if stored == "nf4":
        log.info("the base is stored in NF4: merging into its dequantised weights")
        unpack(files, folder)
        files, dequantize = [folder / file.name for file in files], None
    elif stored != "none":
        raise FasttuneError(
            f"the base is stored quantised ({stored}), so its weights cannot be merged into",
            str(base),
            "export the adapter instead: fasttune export RUN --to adapter",
        )
    changes = read_changes(adapter)
    tensors = stored_tensors(files)
    _check_fit(changes, tensors, config, base)
    rounded = linear_weights(source) & set(tensors) if dequantize else set()
    for number, file in enumerate(files, 1):
        size = file.stat().st_size / 1e9
        log.info("merging shard %d of %d, %.2f GB", number, len(files), size)
        here = [n for n in {*changes} | rounded if tensors[n].file == file]
        if stored == "none":
            shutil.copyfile(file, folder / file.name)
        with (folder / file.name).open("r+b") as stream:
            for name in sorted(here, key=lambda name: tensors[name].start):
                place = tensors[name]
                weight = read_tensor(stream, place)
                if name in rounded:
                    weight = nf4_rounded(weight, getattr(torch, str(dequantize)))
                weight = weight.float()
                if name in changes:
                    weight = changes[name].apply(weight)
                write_tensor(stream, place, weight)
    _write_rest(source, adapter, folder, config, chat_template)


def read_changes(adapter: Path) -> dict[str, Change]:
    """Name of a base tensor -> what the adapter does to it.

    Scale is alpha / r, or alpha / sqrt(r) if the adapter is rank-stabilised (arXiv:2312.03732).
    """
    from safetensors.torch import load_file

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if settings["peft_type"] != "LORA":
        raise _misfit(
            f"the adapter is {settings['peft_type']}, and only LoRA is merged", str(adapter)
        )
    changes: dict[str, Change] = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.")
        if match := re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", name):
            module, embedding, factor = match.groups()
            change = changes.setdefault(f"{module}.weight", Change())
            setattr(change, factor.lower(), tensor)
            change.transposed = bool(embedding) != bool(settings.get("fan_in_fan_out"))
        elif match := re.fullmatch(r"(.+)\.lora_magnitude_vector(?:\.weight)?", name):
            change = changes.setdefault(f"{match[1]}.weight", Change())
            change.magnitude = tensor
        elif "lora_" in name or "token_adapter" in name:
            raise _misfit("the adapter holds a kind of tensor that cannot be merged", key)
        else:
            # Whole tensors: trained biases, modules_to_save, and the base of a LoRA on embeddings.
            name = re.sub(r"\.(base_layer|modules_to_save)\b", "", name)
            change = changes.setdefault(name, Change())
            change.new = tensor
        change.keys.append(key)
    for name, change in changes.items():
        if (change.a is None) != (change.b is None):
            raise _misfit("the adapter holds one half of a LoRA pair", change.keys[0])
        if change.a is not None:
            alpha = settings["lora_alpha"]
            if alphas := settings.get("alpha_pattern"):
                from peft.utils.other import get_pattern_key

                alpha = alphas.get(get_pattern_key(alphas, name.removesuffix(".weight")), alpha)
            rank = change.a.shape[0]
            change.scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return changes


def linear_weights(base: Path) -> set[str]:
    """The weights that 4-bit loading quantises: those of all linear layers but the head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def nf4_rounded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight after bitsandbytes casts it to `dtype`, quantises it to NF4 with double
    quantisation (arXiv:2305.14314) and dequantises it."""
    from bitsandbytes import functional

    device = tensor_device()
    packed, state = functional.quantize_4bit(
        weight.to(device, dtype), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state).to(weight.device)


def _check_fit(
    changes: Mapping[str, Change],
    tensors: Mapping[str, Stored],
    config: Mapping[str, Any],
    base: str,
) -> None:
    """Refuse an adapter that does not fit the base."""
    for name, change in changes.items():
        place = tensors.get(name)
        if place is None:
            raise _misfit(f"the adapter changes a tensor that the base does not hold: {name}", base)
        if place.shape != change.shape():
            raise _misfit(
                f"{name} is {list(place.shape)} in the base, {list(change.shape())} in the adapter",
                base,
            )
        if place.dtype not in DTYPES:
            raise _misfit(f"{name} is stored as {place.dtype}, which cannot be added to", base)
        if config.get("tie_word_embeddings") and place.shape[:1] == (config.get("vocab_size"),):
            raise _misfit(
                f"the adapter changes {name}, but the base uses it twice (tied embeddings)", base
            )


def _misfit(message: str, where: str) -> FasttuneError:
    return FasttuneError(
        message, where, "export the adapter instead: fasttune export RUN --to adapter"
    )


def _write_rest(
    source: Path, adapter: Path, folder: Path, config: dict[str, Any], chat_template: str | None
) -> None:
    """Write index, configurations and tokenizer, which all name the EOS of the run's tokenizer."""
    for pattern in BESIDES if (folder / INDEX).exists() else (INDEX, *BESIDES):
        for file in filter(Path.is_file, source.glob(pattern)):
            _require_inside(source, file)
            shutil.copyfile(file, folder / file.name)
    tokenizer = saved_tokenizer(adapter)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": eos_id(tokenizer)}
    kept = {key: value for key, value in config.items() if key != "auto_map"}  # code stays behind
    write_json(folder / "config.json", {**kept, **ends})
    # As the run answers: greedily and without penalties, whatever the base's own file says.
    tokens = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    write_json(folder / "generation_config.json", {"do_sample": False, **tokens, **ends})


def _require_inside(source: Path, file: Path) -> None:
    """Refuse a file of a base that is a link out of its folder, or out of its part of the Hub's
    cache."""
    cached = (parent for parent in source.absolute().parents if parent.name.startswith("models--"))
    if not file.resolve().is_relative_to(next(cached, source).resolve()):
        raise FasttuneError(
            "a file of the base is a symbolic link out of its folder",
            f"{file} -> {file.resolve()}",
            "replace the link with the file, or delete it",
        )


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
    """Name -> place of every tensor, from the headers of the files."""
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for file in files
        for name, entry in tensors_of(file).items()
    }


def read_tensor(stream: Any, place: Stored) -> torch.Tensor:
    data = bytearray(place.end - place.start)
    stream.seek(place.start)
    stream.readinto(data)
    return torch.frombuffer(data, dtype=DTYPES[place.dtype]).reshape(place.shape)


def write_tensor(stream: Any, place: Stored, tensor: torch.Tensor) -> None:
    stored = tensor.to(DTYPES[place.dtype]).contiguous().reshape(-1)
    stream.seek(place.start)
    stream.write(memoryview(stored.view(torch.uint8).numpy()))
