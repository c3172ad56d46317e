"""Read a model's shape from its config.json: its matrices and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune import hub
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import cache_dir
from fasttune.models.architectures import FAMILIES
from fasttune.models.demo import DEMO_MODEL
from fasttune.models.tokenizer import CUDA_DEFAULT, cannot_load, require_no_code, resolve_model
from fasttune.models.whole import read_config

BUILT_IN: dict[str, dict[str, Any]] = {
    # https://huggingface.co/microsoft/phi-2/blob/main/config.json
    CUDA_DEFAULT: {
        "model_type": "phi",
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "qk_layernorm": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.1,
        "tie_word_embeddings": False,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "dtype": "float16",
    },
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
    DEMO_MODEL: {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
}
"""The configs of the two default models, which can be planned for before they are downloaded."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""torch's name of a dtype -> bytes of a number."""


class UnknownArchitecture(FasttuneError):
    """The planner does not know the model. Training may still work."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a decoder block, under the name that LoRA targets use."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The sizes from which memory and arithmetic follow."""

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    attention: int  # width of the queries, heads * head_dim
    keys: int  # width of the keys and of the values, key-value heads * head_dim
    intermediate: int
    vocab: int
    gated: bool  # the MLP multiplies two projections (SwiGLU) instead of activating one
    linears: tuple[Linear, ...]  # the matrices of one block
    norms: int  # parameters of all norms
    head_bias: bool  # the output head has a bias
    tied: bool  # the output head is the embedding matrix
    max_length: int  # the largest number of positions
    stored: str  # the dtype of the parameters in the files, by the config

    @property
    def linear_weights(self) -> int:
        """Weights of all blocks' matrices, P in the formulas. 4-bit loading quantises these."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def other_parameters(self) -> int:
        """Embeddings, output head, norms and biases."""
        biases = self.layers * sum(linear.outputs for linear in self.linears if linear.bias)
        matrices = self.vocab * self.hidden * (1 if self.tied else 2)
        return matrices + self.norms + biases + self.vocab * self.head_bias

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.other_parameters

    @property
    def in_unsloth(self) -> bool:
        """Whether Unsloth has its own layers for the model on a GPU, or compiles transformers'."""
        return self.model_type != "phi"

    def lora_parameters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """Parameters of the adapters: r * (inputs + outputs) per matrix (arXiv:2106.09685).

        Args:
            targets: names of the adapted matrices; empty for all.

        Raises:
            FasttuneError: the model has no matrix of that name.
        """
        known = [linear.name for linear in self.linears]
        for name in targets:
            if name not in known:
                raise FasttuneError(
                    f"LoRA target '{name}' matches no layer of this {self.model_type}",
                    "lora.targets",
                    did_you_mean(name, known),
                )
        adapted = [linear for linear in self.linears if linear.name in (targets or known)]
        return self.layers * rank * sum(linear.inputs + linear.outputs for linear in adapted)


def read_shape(name: str) -> Shape:
    """Read the shape of a model folder, a built-in model or a model on the Hub; see `shape_of`."""
    return shape_of(_read_config(name), name)


def shape_of(config: Mapping[str, Any], name: str) -> Shape:
    """Work out the shape that a config.json describes.

    Raises:
        UnknownArchitecture: the planner does not know the model.
        FasttuneError: a size is missing.
    """
    model_type = str(config.get("model_type"))
    family = FAMILIES.get(model_type)
    if family is None or not family.planned:
        known = [kind for kind, family in FAMILIES.items() if family.planned]
        raise UnknownArchitecture(
            f"the planner does not know the architecture '{model_type}'",
            name,
            f"it knows {', '.join(known)}; fasttune run trains other models without a plan",
        )
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, vocab = int(config["num_attention_heads"]), int(config["vocab_size"])
        intermediate = int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise FasttuneError(
            "a size is missing in the model's config.json",
            f"{name}: {error}",
            "download the model again, or complete its config.json",
        ) from error
    head_dim = int(config.get("head_dim") or hidden // heads)
    attention = heads * head_dim
    keys = int(config.get("num_key_value_heads") or heads) * head_dim
    biases = set(family.biases)
    biases |= {*family.qkv, family.output} if config.get("attention_bias") else set()
    biases |= set(family.mlp) if config.get("mlp_bias") else set()
    sizes = [
        *zip(family.qkv, (hidden,) * 3, (attention, keys, keys), strict=True),
        (family.output, attention, hidden),
        *((up, hidden, intermediate) for up in family.mlp[:-1]),
        (family.mlp[-1], intermediate, hidden),
    ]
    norm_widths = hidden * (family.norms * layers + 1) + 2 * head_dim * layers * family.head_norms
    return Shape(
        name=name,
        model_type=model_type,
        hidden=hidden,
        layers=layers,
        heads=heads,
        attention=attention,
        keys=keys,
        intermediate=intermediate,
        vocab=vocab,
        gated=len(family.mlp) == 3,
        linears=tuple(Linear(*size, bias=size[0] in biases) for size in sizes),
        norms=norm_widths * (1 + family.norm_bias),
        head_bias=family.head_bias,
        tied=bool(config.get("tie_word_embeddings", family.tied)),
        max_length=int(config.get("max_position_embeddings") or 2048),
        stored=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def _read_config(name: str) -> dict[str, Any]:
    folder = Path(name)
    if folder.exists():
        require_no_code(resolve_model(name))
        return read_config(folder / "config.json")
    if folder == cache_dir() / DEMO_MODEL:  # not converted yet
        name = DEMO_MODEL
    if name in BUILT_IN:
        return BUILT_IN[name]
    require_no_code(name)
    try:
        return read_config(hub.file(name, "config.json"))
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
