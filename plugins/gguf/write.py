"""Write a merged model folder as one GGUF file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors are read, converted
and written one at a time.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fasttune import FasttuneError

from . import K_QUANTS, QUANTS, refusal
from .vocabulary import add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

QUANTIZE = "llama-quantize"

Config = Mapping[str, Any]


def write_gguf(
    model_folder: Path, target: Path, quant: str, chat_template: str | None, name: str
) -> None:
    """Write a folder with safetensors, config.json and tokenizer.json as GGUF.

    Args:
        target: the file; incomplete after a failure.
        quant: one of QUANTS or K_QUANTS.
        chat_template: Jinja, or None for a file without one.
        name: the model's name in the file, which programs show.

    Raises:
        FasttuneError: the architecture, the tokenizer or the type is not supported.
    """
    check_quant(quant)
    if quant not in K_QUANTS:
        _write(model_folder, target, quant, chat_template, name)
        return
    config = _read_json(model_folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    between = "bf16" if stored == "bfloat16" else "f16"
    with tempfile.TemporaryDirectory(prefix=".gguf.", dir=target.parent) as folder:
        full = Path(folder) / f"{between}.gguf"
        _write(model_folder, full, between, chat_template, name)
        _quantize(full, target, quant)


def check_quant(quant: str) -> None:
    """Refuse a type that does not exist, or whose program is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise FasttuneError("the gguf package is not installed", "", "run `pip install gguf`")
    if quant not in QUANTS + K_QUANTS:
        raise FasttuneError(
            f"there is no GGUF type '{quant}'", "", f"choose one of {', '.join(QUANTS + K_QUANTS)}"
        )
    if quant in K_QUANTS and shutil.which(QUANTIZE) is None:
        raise FasttuneError(
            f"the type {quant} needs llama.cpp's {QUANTIZE}, which is not on the PATH",
            "",
            f"build llama.cpp and add it to the PATH, or choose one of {', '.join(QUANTS)}",
        )


def _quantize(source: Path, target: Path, quant: str) -> None:
    command = [QUANTIZE, str(source), str(target), quant.upper()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["it printed nothing"]
        raise FasttuneError(
            f"{QUANTIZE} failed with status {ended.returncode}",
            lines[-1],
            "check that it is from a recent llama.cpp, and that the disk is not full",
        )


def _write(folder: Path, target: Path, quant: str, chat_template: str | None, name: str) -> None:
    import gguf

    config = _read_json(folder / "config.json")
    if config.get("model_type") not in _ARCHITECTURES:
        what = f"the model has the architecture '{config.get('model_type')}'"
        raise refusal(what, folder / "config.json", ", ".join(_ARCHITECTURES))
    architecture, describe, rearrange = _ARCHITECTURES[config["model_type"]]
    _check_config(config, folder)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    share = "ALL" if quant == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{share}_{quant.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe(writer, config)
    describe(writer, config)
    add_vocabulary(writer, folder, config["vocab_size"])
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    _write_tensors(writer, folder, config, quant, rearrange)
    writer.close()


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FasttuneError(
            "the folder holds no model", f"{file} is missing", "restore it, or export again"
        ) from error


def _check_config(config: Config, folder: Path) -> None:
    """Refuse variants of the architectures that llama.cpp does not have."""
    model, rope = config["model_type"], _rope(config)
    kind, gelu = rope["rope_type"], config.get("hidden_activation")
    kinds = ("default",) if model in ("phi", "gemma") else _ROPES
    tied = config.get("tie_word_embeddings")
    unsupported = {
        f"rotary embeddings of type '{kind}'": kind not in kinds,
        "a yarn with settings of its own": kind == "yarn" and rope.keys() & _YARN_SETTINGS,
        "layer norms on queries and keys": config.get("qk_layernorm"),
        "a sliding window in some of its layers": config.get("use_sliding_window"),
        "biases in its attention": model == "qwen3" and config.get("attention_bias"),
        "an output head tied to the embedding": model == "phi" and tied,
        f"the activation {gelu}": model == "gemma" and gelu not in (None, "gelu_pytorch_tanh"),
    }
    for what, present in unsupported.items():
        if present:
            raise refusal(f"the model has {what}", folder / "config.json")


_ROPES = ("default", "linear", "yarn", "llama3")
_YARN_SETTINGS = {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"}


def _rope(config: Config) -> dict[str, Any]:
    """The settings of the rotary embeddings, which configs keep under several keys."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    settings = {key: value for key, value in rope.items() if value is not None}
    return {**settings, "rope_type": kind, "rope_theta": theta}


def _describe(writer: GGUFWriter, config: Config) -> None:
    """Write the hyperparameters that all architectures have."""
    from gguf import RopeScalingType

    heads = config["num_attention_heads"]
    # llama.cpp's llama has no sliding window, which makes no difference up to the window's length.
    longest = min(config["max_position_embeddings"], config.get("sliding_window") or math.inf)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(int(longest))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        trained = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(trained)


def _rope_factors(config: Config) -> np.ndarray | None:
    """The divisors of the frequencies for Llama 3.1's scaling, or None."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, trained = _head_dim(config), rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    smooth = np.clip((trained / waves - low) / (high - low), 0, 1)
    factors: np.ndarray = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.astype(np.float32)


def _describe_phi(writer: GGUFWriter, config: Config) -> None:
    share = _rope(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 0.5
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_rope_dimension_count(int(_head_dim(config) * share))


def _describe_llama(writer: GGUFWriter, config: Config) -> None:
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _unchanged(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    return values


def _interleave_heads(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Reorder the rows of Llama's q and k: transformers rotates row i of a head with row i + d/2,
    llama.cpp's LLAMA rotates neighbours."""
    for projection, key in (("q_proj.", "num_attention_heads"), ("k_proj.", "num_key_value_heads")):
        if projection in name:
            heads = int(config.get(key) or config["num_attention_heads"])
            half = values.shape[0] // heads // 2
            return values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
    return values


def _norms_from_one(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Add 1 to the norms: Gemma multiplies by 1 + weight, llama.cpp by the weight."""
    return values + 1 if name.endswith("norm.weight") else values


_Rearrange = Callable[[str, np.ndarray, Config], np.ndarray]
# model_type -> llama.cpp's name, and functions for its other hyperparameters and its tensors.
_ARCHITECTURES: dict[str, tuple[str, Callable[[GGUFWriter, Config], None], _Rearrange]] = {
    "phi": ("phi2", _describe_phi, _unchanged),
    "llama": ("llama", _describe_llama, _interleave_heads),
    "mistral": ("llama", _describe_llama, _interleave_heads),
    "qwen2": ("qwen2", _describe_llama, _unchanged),
    "qwen3": ("qwen3", _describe_llama, _unchanged),
    "gemma": ("gemma", _describe_llama, _norms_from_one),
}


def _write_tensors(
    writer: GGUFWriter, folder: Path, config: Config, quant: str, rearrange: _Rearrange
) -> None:
    import gguf
    from gguf import quants
    from safetensors import safe_open

    names = _tensor_names(folder, config)
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    kinds = {ours: _kind(theirs, shape, quant) for ours, (theirs, shape, _) in names.items()}
    for ours, (theirs, shape, _) in names.items():
        in_bytes = gguf.quant_shape_to_byte_shape(shape, kinds[ours])
        size = math.prod(in_bytes)
        writer.add_tensor_info(theirs, in_bytes, np.dtype(np.uint8), size, raw_dtype=kinds[ours])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for ours, (_, _, file) in names.items():
        with safe_open(file, framework="pt") as tensors:
            values = rearrange(ours, tensors.get_tensor(ours).float().numpy(), config)
        writer.write_tensor_data(quants.quantize(np.ascontiguousarray(values), kinds[ours]))


def _kind(name: str, shape: tuple[int, ...], quant: str) -> Any:
    """f32 for vectors, f16 for rows that cannot be divided into blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType[quant.upper()]
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if quant[:2] in ("q4", "q5") and name in ("token_embd.weight", "output.weight"):
        wanted = GGMLQuantizationType.Q8_0
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _tensor_names(folder: Path, config: Config) -> dict[str, tuple[str, tuple[int, ...], Path]]:
    """transformers' name of each tensor -> llama.cpp's name, shape and file."""
    import gguf
    from safetensors import safe_open

    architecture = _ARCHITECTURES[config["model_type"]][0]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings", config["model_type"] == "gemma"))
    names: dict[str, tuple[str, tuple[int, ...], Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for ours in sorted(tensors.keys()):
                if ours.endswith("rotary_emb.inv_freq") or (tied and ours == "lm_head.weight"):
                    continue
                theirs = known.get_name(ours, try_suffixes=(".weight", ".bias"))
                if theirs is None:
                    what = f"llama.cpp's {architecture} has no place for the tensor '{ours}'"
                    raise refusal(what, file)
                names[ours] = (theirs, tuple(tensors.get_slice(ours).get_shape()), file)
    if not names:
        raise FasttuneError("the folder holds no safetensors", str(folder), "export again")
    return names
