"""A model's shape, read from its config.json: which matrices it has and how large they are."""

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
from fasttune.models.tokenizer import CUDA_DEFAULT, cannot_load, require_no_code
from fasttune.models.whole import read_object

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
"""Models that can be planned for before they are on the disk: the two defaults."""


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number, by torch's name of its dtype."""


class UnknownArchitecture(FasttuneError):
    """The model may be trained, but not planned for."""


@dataclass(frozen=True)
class Linear:
    """One matrix of a decoder block; the name is the one that LoRA targets use."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What memory and arithmetic follow from.

    Attributes:
        attention: width of the queries, heads * head_dim.
        keys: width of the keys, key-value heads * head_dim; the same for the values.
        gated: the MLP multiplies two projections (SwiGLU), instead of one through an activation.
        linears: the matrices of one block.
        norms: parameters of all norms.
        head_bias: the output head has a bias.
        tied: the output head is the embedding matrix.
        max_length: positions the model was made for.
        stored: the dtype of the parameters in the files, by the config.
    """

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    attention: int
    keys: int
    intermediate: int
    vocab: int
    gated: bool
    linears: tuple[Linear, ...]
    norms: int
    head_bias: bool
    tied: bool
    max_length: int
    stored: str

    @property
    def stored_bytes(self) -> int:
        """Bytes of a parameter in the files."""
        return BYTES.get(self.stored, 2)

    @property
    def linear_weights(self) -> int:
        """Weights of all blocks' matrices, P in the formulas: those that 4-bit loading quantises
        and that every token is multiplied with."""
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
        """Whether Unsloth has layers of its own for it on a GPU, instead of compiling those of
        transformers: of what can be planned for, all but Phi."""
        return self.model_type != "phi"

    @property
    def largest_linear(self) -> int:
        """Weights of the largest matrix of a block."""
        return max(linear.weights for linear in self.linears)

    def adapted(self, targets: Sequence[str]) -> list[Linear]:
        """The matrices of one block that get an adapter; no targets mean all.

        Raises:
            FasttuneError: a target is no matrix of the model.
        """
        known = [linear.name for linear in self.linears]
        for name in targets:
            if name not in known:
                raise FasttuneError(
                    f"LoRA target '{name}' matches no layer of this {self.model_type}",
                    "lora.targets",
                    did_you_mean(name, known),
                )
        return [linear for linear in self.linears if not targets or linear.name in targets]

    def lora_parameters(self, rank: int, targets: Sequence[str] = ()) -> int:
        """Parameters of the adapters: r * (inputs + outputs) per matrix (arXiv:2106.09685)."""
        return self.layers * sum(
            rank * (linear.inputs + linear.outputs) for linear in self.adapted(targets)
        )


def read_shape(name: str) -> Shape:
    """The shape of a model folder, of a built-in model or of one on the Hub.

    Raises:
        UnknownArchitecture: the planner does not know it.
        FasttuneError: there is no config.json, or it is incomplete.
    """
    return shape_of(_read_config(name), name)


def shape_of(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a config.json describes.

    Raises:
        UnknownArchitecture: the planner does not know it.
        FasttuneError: a size is missing.
    """
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None or not family.planned:
        known = [kind for kind, family in FAMILIES.items() if family.planned]
        raise UnknownArchitecture(
            f"the planner does not know the architecture '{kind}'",
            name,
            f"it knows {', '.join(known)}",
        )
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, vocab = int(config["num_attention_heads"]), int(config["vocab_size"])
        wide = int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise FasttuneError(
            "the config.json gives no size of the model", f"{name}: {error}", "use a complete one"
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
        *((up, hidden, wide) for up in family.mlp[:-1]),
        (family.mlp[-1], wide, hidden),
    ]
    norm_widths = hidden * (family.norms * layers + 1) + 2 * head_dim * layers * family.head_norms
    return Shape(
        name=name,
        model_type=kind,
        hidden=hidden,
        layers=layers,
        heads=heads,
        attention=attention,
        keys=keys,
        intermediate=wide,
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
    if folder.is_dir():
        require_no_code(name)
        return read_object(folder / "config.json")
    if folder == cache_dir() / DEMO_MODEL:
        return BUILT_IN[DEMO_MODEL]
    if name in BUILT_IN:
        return BUILT_IN[name]
    from huggingface_hub import hf_hub_download

    hub.reach(name)
    require_no_code(name)
    try:
        return read_object(Path(hf_hub_download(name, "config.json")))
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
