"""What is known of each architecture beyond its config.json."""

from __future__ import annotations

from dataclasses import dataclass

QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """What the config.json of an architecture does not say.

    Attributes:
        qkv: names of the matrices of queries, keys and values; a single one where they are one.
        output: name of the attention's other matrix.
        mlp: names of the MLP's matrices; three where it is gated.
        biases: names of the matrices with a bias.
        norms: norms of a block.
        norm_bias: norms have a bias beside the weight, as LayerNorm has.
        head_norms: queries and keys are normalised per head.
        head_bias: the output head has a bias.
        tied: the output head is the embedding matrix, where the config does not say otherwise.
        planned: what follows `mlp` is known too, so that the planner can count.
    """

    qkv: tuple[str, ...] = QKV
    output: str = "o_proj"
    mlp: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    biases: tuple[str, ...] = ()
    norms: int = 2
    norm_bias: bool = False
    head_norms: bool = False
    head_bias: bool = False
    tied: bool = False
    planned: bool = True

    @property
    def targets(self) -> tuple[str, ...]:
        """Every linear layer of a decoder block: what LoRA adapts. Unsloth's own default list has
        Llama's names and reaches only q, k and v of Phi, without a word."""
        return (*self.qkv, self.output, *self.mlp)


FAMILIES = {
    "phi": Family(
        output="dense",
        mlp=("fc1", "fc2"),
        biases=(*QKV, "dense", "fc1", "fc2"),
        norms=1,
        norm_bias=True,
        head_bias=True,
    ),
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(biases=QKV),
    "qwen3": Family(head_norms=True),
    "gemma": Family(tied=True),
    "gemma2": Family(planned=False),
    "phi3": Family(qkv=("qkv_proj",), mlp=("gate_up_proj", "down_proj"), planned=False),
    "gpt_neox": Family(
        qkv=("query_key_value",),
        output="dense",
        mlp=("dense_h_to_4h", "dense_4h_to_h"),
        planned=False,
    ),
}
"""model_type -> what is known of it. Of one that is not here LoRA adapts every linear layer."""
