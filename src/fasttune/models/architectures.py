"""Facts about each architecture that its config.json does not hold."""

from __future__ import annotations

from dataclasses import dataclass

QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Family:
    """Matrices and norms of an architecture's decoder block.

    Attributes:
        qkv: the matrices of queries, keys and values, or a single one for all three.
        output: the attention's output matrix.
        mlp: the MLP's matrices; a gated MLP has three.
        biases: the matrices with a bias.
        norms: number of norms in a block.
        norm_bias: norms have a bias beside their weight, as LayerNorm does.
        head_norms: queries and keys are normalized per head.
        head_bias: the output head has a bias.
        tied: by default the output head is the embedding matrix.
        planned: the attributes after `mlp` are known, so the planner can count.
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
        """The layers that LoRA adapts: every linear layer of a block."""
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
"""By model_type. For any other model, LoRA adapts every linear layer."""
