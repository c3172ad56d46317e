"""A merged model folder -> one GGUF file for llama.cpp and what is built on it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors are read, converted
and written one at a time, so memory holds little more than the largest of them.
"""

from __future__ import annotations

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

from .vocabulary import add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

# What the gguf package quantises itself: matrices to this type, vectors stay f32. The types below 8
# bits keep the embedding and the output head in 8 bits: rounding those costs the most.
QUANTS = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
# What only llama.cpp's own program makes.
K_QUANTS = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")
QUANTIZE = "llama-quantize"

Config = Mapping[str, Any]


def write_gguf(
    model_folder: Path, target: Path, quant: str, chat_template: str | None, name: str
) -> None:
    """Write a model as GGUF.

    Args:
        model_folder: safetensors, config.json and tokenizer.json of a model whose model_type is
            known here.
        target: in a folder that exists; what is there after a failure is not whole.
        quant: one of QUANTS or K_QUANTS; the latter need llama-quantize on the PATH.
        chat_template: Jinja, or None for a file without one.
        name: what programs show for the model.

    Raises:
        FasttuneError: the architecture, the tokenizer or the type is none that can be written.
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
    """Refuse a type that cannot be written here, before the work.

    Raises:
        FasttuneError: there is no such type, or what makes it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise FasttuneError("the gguf package is not installed", "", "pip install 'fasttune[gguf]'")
    if quant not in (*QUANTS, *K_QUANTS):
        raise FasttuneError(
            f"there is no GGUF type '{quant}'", "", f"it takes {', '.join((*QUANTS, *K_QUANTS))}"
        )
    if quant in K_QUANTS and shutil.which(QUANTIZE) is None:
        raise FasttuneError(
            f"only llama.cpp's {QUANTIZE} makes {quant}, and it is not on the PATH",
            "",
            f"build llama.cpp and put it there, or choose one of {', '.join(QUANTS)}",
        )


def _quantize(source: Path, target: Path, quant: str) -> None:
    done = subprocess.run(
        [QUANTIZE, str(source), str(target), quant.upper()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise FasttuneError(f"{QUANTIZE} failed with status {done.returncode}", lines[-1], "")


def _write(folder: Path, target: Path, quant: str, chat_template: str | None, name: str) -> None:
    import gguf

    config = _read_json(folder / "config.json")
    if config.get("model_type") not in _ARCHITECTURES:
        raise FasttuneError(
            f"no GGUF can be written for the architecture '{config.get('model_type')}'",
            str(folder / "config.json"),
            f"known: {', '.join(_ARCHITECTURES)}; llama.cpp's convert_hf_to_gguf.py knows more",
        )
    architecture, describe, rearrange = _ARCHITECTURES[config["model_type"]]
    _check_config(config, folder)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quant]])
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
            "the folder holds no model that can be written as GGUF", f"{file} is missing", ""
        ) from error


def _check_config(config: Config, folder: Path) -> None:
    """Refuse what these architectures can have and llama.cpp's do not."""
    rope = _rope(config)
    kind = rope["rope_type"]
    for present, what in (
        (kind not in _ROPES, f"rotary embeddings of type '{kind}'"),
        (
            kind != "default" and config["model_type"] in ("phi", "gemma"),
            f"rotary embeddings of type '{kind}'",
        ),
        (
            kind == "yarn" and any(key in rope for key in _YARN_OF_ITS_OWN),
            "a yarn with settings of its own",
        ),
        (config.get("qk_layernorm"), "layer norms on queries and keys"),
        (config.get("use_sliding_window"), "a sliding window in some of its layers"),
        (
            config["model_type"] == "qwen3" and config.get("attention_bias"),
            "biases in its attention",
        ),
        (
            config["model_type"] == "phi" and config.get("tie_word_embeddings"),
            "an output head tied to the embedding",
        ),
        (
            config["model_type"] == "gemma"
            and (config.get("hidden_activation") or "gelu_pytorch_tanh") != "gelu_pytorch_tanh",
            f"the activation {config.get('hidden_activation')}",
        ),
    ):
        if present:
            raise FasttuneError(
                f"the model has {what}, which fasttune cannot write as GGUF",
                str(folder / "config.json"),
                "export it as merged, and convert that with llama.cpp's convert_hf_to_gguf.py",
            )


_ROPES = ("default", "linear", "yarn", "llama3")
_YARN_OF_ITS_OWN = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")


def _rope(config: Config) -> dict[str, Any]:
    """The settings of the rotary embeddings, wherever the config has them, with their type."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = found.get("rope_type", found.get("type", "default"))
    theta = found.get("rope_theta", config.get("rope_theta", 10000.0))
    set_ = {key: value for key, value in found.items() if value is not None}
    return {**set_, "rope_type": kind, "rope_theta": theta}


def _describe(writer: GGUFWriter, config: Config) -> None:
    """The hyperparameters that all architectures have."""
    heads = config["num_attention_heads"]
    # llama.cpp's llama has no sliding window: up to the window's length there is no difference.
    longest = min(config["max_position_embeddings"], config.get("sliding_window") or math.inf)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(int(longest))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    _describe_rope(writer, config)


def _describe_rope(writer: GGUFWriter, config: Config) -> None:
    from gguf import RopeScalingType

    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        trained = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
        writer.add_rope_scaling_orig_ctx_len(trained)


def _rope_factors(config: Config) -> np.ndarray | None:
    """What each frequency is divided by, as Llama 3.1 does it; None elsewhere."""
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


def _as_it_is(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    return values


def _interleave_heads(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """The rows of Llama's q and k in the order of llama.cpp.

    transformers rotates row i of a head with row i + d/2; llama.cpp's LLAMA rotates neighbours, as
    the original model did. In the other architectures the rotation is the same in both.
    """
    for projection, key in (("q_proj.", "num_attention_heads"), ("k_proj.", "num_key_value_heads")):
        if projection in name:
            heads = int(config.get(key) or config["num_attention_heads"])
            half = values.shape[0] // heads // 2
            return values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
    return values


def _norms_from_one(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Gemma's norms multiply by 1 + weight; llama.cpp's by the weight."""
    return values + 1 if name.endswith("norm.weight") else values


_Rearrange = Callable[[str, np.ndarray, Config], np.ndarray]
# model_type -> llama.cpp's name, its own hyperparameters, and what is done to its tensors.
_ARCHITECTURES: dict[str, tuple[str, Callable[[GGUFWriter, Config], None], _Rearrange]] = {
    "phi": ("phi2", _describe_phi, _as_it_is),
    "llama": ("llama", _describe_llama, _interleave_heads),
    "mistral": ("llama", _describe_llama, _interleave_heads),
    "qwen2": ("qwen2", _describe_llama, _as_it_is),
    "qwen3": ("qwen3", _describe_llama, _as_it_is),
    "gemma": ("gemma", _describe_llama, _norms_from_one),
}
_FILE_TYPES = {
    "f32": "ALL_F32",
    **{quant: f"MOSTLY_{quant.upper()}" for quant in QUANTS if quant != "f32"},
}


def _write_tensors(
    writer: GGUFWriter, folder: Path, config: Config, quant: str, rearrange: _Rearrange
) -> None:
    import gguf
    from gguf import quants

    names = _tensor_names(folder, config)
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    kinds: dict[str, gguf.GGMLQuantizationType] = {}
    for ours, (theirs, shape, _) in names.items():
        kinds[ours] = kind = _kind(theirs, shape, quant)
        size, byte_shape = np.dtype(np.float32).itemsize * int(np.prod(shape)), shape
        if kind != gguf.GGMLQuantizationType.F32:
            byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
            size = int(np.prod(byte_shape))
        dtype = np.dtype(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.uint8)
        writer.add_tensor_info(theirs, byte_shape, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for ours, (_, _, file) in names.items():
        values = rearrange(ours, _read_tensor(file, ours), config)
        writer.write_tensor_data(quants.quantize(np.ascontiguousarray(values), kinds[ours]))


def _kind(name: str, shape: tuple[int, ...], quant: str) -> Any:
    """The type of a tensor: f32 for vectors, f16 for rows that do not divide into blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType[quant.upper()]
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if quant[:2] in ("q4", "q5") and name in ("token_embd.weight", "output.weight"):
        wanted = GGMLQuantizationType.Q8_0
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _tensor_names(folder: Path, config: Config) -> dict[str, tuple[str, tuple[int, ...], Path]]:
    """transformers' name -> llama.cpp's, the shape and the file, in the order of the files.

    Raises:
        FasttuneError: llama.cpp has no place for a tensor.
    """
    import gguf
    from safetensors import safe_open

    architecture = _ARCHITECTURES[config["model_type"]][0]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings", config["model_type"] == "gemma"))
    found: dict[str, tuple[str, tuple[int, ...], Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for ours in sorted(tensors.keys()):
                if ours.endswith("rotary_emb.inv_freq") or (tied and ours == "lm_head.weight"):
                    continue
                theirs = known.get_name(ours, try_suffixes=(".weight", ".bias"))
                if theirs is None:
                    raise FasttuneError(
                        f"llama.cpp's {architecture} has no place for the tensor '{ours}'",
                        str(file),
                        "export it as merged",
                    )
                found[ours] = (theirs, tuple(tensors.get_slice(ours).get_shape()), file)
    if not found:
        raise FasttuneError("the folder holds no safetensors", str(folder), "")
    return found


def _read_tensor(file: Path, name: str) -> np.ndarray:
    """A tensor in fp32."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        values: np.ndarray = tensors.get_tensor(name).float().numpy()
    return values
