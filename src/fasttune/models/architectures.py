"""What is known of each architecture beyond its config.json."""

from __future__ import annotations

from dataclasses import dataclass

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# model_type -> every linear layer of a decoder block. Unsloth's own default list has Llama's names
# and reaches only q, k and v of Phi, without a word.
TARGETS: dict[str, tuple[str, ...]] = {
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
}


@dataclass(frozen=True)
class Family:
    """What the config.json of an architecture does not say.

    Attributes:
        mlp: names of the MLP's matrices; three where it is gated.
        biases: names of the matrices with a bias.
        norms: norms of a block.
        norm_bias: norms have a bias beside the weight, as LayerNorm has.
        head_norms: queries and keys are normalised per head.
    """

    output: str = "o_proj"
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    biases: tuple[str, ...] = ()
    norms: int = 2
    norm_bias: bool = False
    head_norms: bool = False
    head_bias: bool = False
    tied: bool = False


QKV = ("q_proj", "k_proj", "v_proj")
_PHI = ("dense", "fc1", "fc2")

FAMILIES = {
    "phi": Family("dense", ("fc1", "fc2"), (*QKV, *_PHI), norms=1, norm_bias=True, head_bias=True),
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(biases=QKV),
    "qwen3": Family(head_norms=True),
    "gemma": Family(tied=True),
}
