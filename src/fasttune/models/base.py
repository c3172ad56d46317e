"""What a base model's files say before it is loaded, and whether they are a run's still."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.config import ModelConfig
from fasttune.errors import FasttuneError
from fasttune.files import cache_dir, sha256, write_json
from fasttune.models.tokenizer import cannot_load, require_model
from fasttune.models.whole import read_config, require_finite, tensors_of, text_config
from fasttune.records import read_json
from fasttune.runs import Run

log = logging.getLogger(__name__)

BESIDES = ("LICENSE*", "NOTICE*")
"""Files of a base that its licence wants beside its weights."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
WHOLE_MODEL = "choose the model that it was made from; model.quantization=nf4 quantises it"


@dataclass(frozen=True)
class Base:
    """What the config.json of a base says.

    Attributes:
        positions: number of tokens it reads; None if nothing bounds it.
        stored: how its weights are quantised: "nf4", "none", or the name of another way.
    """

    name: str
    positions: int | None
    stored: str

    @classmethod
    def of(cls, name: str, config: dict[str, Any]) -> Base:
        return cls(
            name, positions(text_config(config)), stored_as(config.get("quantization_config"))
        )

    def trainable(self, model: ModelConfig) -> ModelConfig:
        """The settings with the quantization in which the base is stored.

        Raises:
            FasttuneError: a run with these settings could not be used later.
        """
        if self.positions is not None and model.max_length > self.positions:
            raise FasttuneError(
                f"model.max_length is {model.max_length}, and the model reads {self.positions} "
                "tokens",
                f"{self.name}: max_position_embeddings in its config.json",
                f"set model.max_length={self.positions}, or choose a model that reads more",
            )
        if self.stored == "none":
            return model
        where = f"{self.name}: quantization_config in its config.json"
        if self.stored != "nf4":
            what = f"the base is stored quantised ({self.stored}), so a run could not be exported"
            raise FasttuneError(what, where, WHOLE_MODEL)
        if model.quantization == "none":
            what = "the base is stored in NF4, so it cannot be used without quantization"
            raise FasttuneError(what, where, "set model.quantization=nf4, or choose another model")
        return replace(model, quantization="nf4")


def positions(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that a model reads, with its RoPE scaling; None if nothing bounds it."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    read = next((config[key] for key in keys if config.get(key)), None)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(read, int) or not isinstance(rope, Mapping):
        return read if isinstance(read, int) else None
    # The other kinds, of Llama 3 and of Phi-3, count max_position_embeddings after scaling.
    if rope.get("rope_type", rope.get("type")) not in ("linear", "dynamic", "yarn"):
        return read
    trained, factor = rope.get("original_max_position_embeddings") or read, rope.get("factor")
    if isinstance(factor, (int, float)) and 1 <= factor <= 10**4 and isinstance(trained, int):
        return max(read, int(trained * factor))
    return read


def stored_as(settings: Any) -> str:
    """How a quantization_config stores the weights: "none" without one."""
    if not settings or not isinstance(settings, Mapping):
        return "none"
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "fp4"))
    return "8 bits" if settings.get("load_in_8bit") else str(settings.get("quant_method"))


def read_base(name: str) -> Base | None:
    """What is known of a base in a folder or in the Hub's cache; None of any other."""
    folder = hub.local_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        return None
    return Base.of(name, read_config(folder / "config.json"))


def trainable(model: ModelConfig, name: str) -> ModelConfig:
    """See `Base.trainable`; the settings themselves of a base that is not on this machine."""
    base = read_base(name)
    return model if base is None else base.trainable(model)


def base_folder(name: str) -> Path:
    """Return the folder of a base; download what is missing of it."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", *BESIDES]
    try:
        return hub.local_first(snapshot_download, name, allow_patterns=wanted)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error


def require_finite_weights(name: str) -> None:
    """Refuse a base on this machine whose weights contain NaN or infinity."""
    folder = hub.local_folder(name)
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        require_finite(file)


def digests(name: str) -> dict[str, str]:
    """The SHA-256 of the files that decide what a base answers: weights, config, tokenizer."""
    folder = hub.local_folder(name)
    if folder is None:
        return {}
    weights = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    others = [folder / each for each in ("config.json", *TOKENIZER) if (folder / each).is_file()]
    return {file.name: _digest(file) for file in weights} | {
        file.name: sha256(file) for file in others
    }


def _digest(file: Path) -> str:
    """The SHA-256 of a file of weights. 5 GB take 4 s, so it is remembered by place, size and
    time of change: a start reads nothing again."""
    status = file.stat()
    known = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    kept = cache_dir() / "digests" / f"{hashlib.sha256(known.encode()).hexdigest()}.json"
    with suppress(FasttuneError):
        return str(read_json(kept, str))
    digest = sha256(file)
    with suppress(OSError):  # the cache only saves time
        write_json(kept, digest)
    return digest


def require_trained(run: Run, force: bool = False) -> None:
    """Refuse a run whose adapter is not what training saved, or whose base has changed since.

    Args:
        force: only warn of a changed base.
    """
    run.check_adapter()
    require_model(str(run.adapter))
    _require_all_layers(run)
    require_model(run.manifest["model"])
    require_same_base(run, force)


def require_same_base(run: Run, force: bool = False) -> None:
    """Refuse a run whose base has other weights or another tokenizer than in training."""
    name, before = run.manifest["model"], run.manifest.get("base", {})
    if not before:
        return
    folder, now = base_folder(name), digests(name)
    changed = [file for file in before if now.get(file) != before[file]]
    if not changed:
        return
    what = f"the base has changed since run '{run.name}' was trained on it"
    if force:
        log.warning("warning: %s: %s", what, ", ".join(changed))
        return
    raise FasttuneError(
        what,
        f"{folder}: {', '.join(changed)}",
        "restore these files, or train again; generating and resuming take --force",
    )


def _require_all_layers(run: Run) -> None:
    """Refuse an adapter that lacks LoRA's matrices of a layer, which would answer untuned there."""
    names = tensors_of(run.adapter / "adapter_model.safetensors")
    for factor in "AB":
        present = _layers(names, factor)
        for layer, count in run.manifest["lora"]["layers"].items():
            if present[layer] != count:
                raise FasttuneError(
                    f"the adapter has {present[layer]} of {count} layers {layer}",
                    f"{run.adapter}: lora_{factor}",
                    "restore it; or delete the folder, and resume the run from a checkpoint",
                )


def _layers(names: Iterable[str], factor: str) -> Counter[str]:
    matches = (re.search(rf"([^.]+)\.lora_{factor}\b", name) for name in names)
    return Counter(match[1] for match in matches if match)
