"""What makes a training step fast, applied to a model with fresh adapters.

On CUDA that is the attention of packed rows, and with `model.fast_path=on` Phi's layers (Unsloth
has its own for Llama and its kin); the rest of the model is as Unsloth made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fasttune.encoding.batches import Layout, pack
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.models.choices import Attention, Choices
from fasttune.models.fast.attention import switch_attention
from fasttune.models.fast.fused import fuse_norms
from fasttune.models.fast.grouped import group_lora
from fasttune.models.fast.layers import layer_obstacle, rewrite_layers
from fasttune.models.head import causal_lm, decoder
from fasttune.models.heap import keep_freed_memory

LEAK = 0.1
"""Share of its length by which a row's state may change with its neighbours. Rounding in 16 bits
makes up to 0.01, a leak 0.4 in a tiny Gemma and above 1 in others."""

IN_WORDS = {
    "rows": "rows attend one by one",
    "varlen": "variable-length attention",
    "memory_efficient": "xformers' attention in blocks",
    "mask": "one mask for all rows of a pack",
}


@dataclass(frozen=True)
class FastPath:
    """Which parts of the fast path are on for a model.

    Attributes:
        attention: how the rows of a pack are kept apart, see `Choices.attention`.
        why: why it is not the chosen one; "" if it is.
        layers: number of decoder layers with fasttune's forward.
        groups: number of groups of LoRA layers that are computed together in the others.
        plain: what computes the layers if both are 0, and why.
        norms: number of fused RMSNorms.
    """

    attention: Attention
    why: str = ""
    layers: int = 0
    groups: int = 0
    plain: str = ""
    norms: int = 0

    @property
    def by_row(self) -> bool:
        """Packed rows attend one by one, and may share their beginning."""
        return self.attention == "rows"

    def row_inputs(self, layout: Layout | None) -> dict[str, Any]:
        """The decoder's inputs beside ids and restarting positions.

        Args:
            layout: of the pack; None for padded rows, which need only their mask.
        """
        if layout is None or self.attention == "mask":
            return {}
        if self.by_row:
            rows: dict[str, Any] = {"row_layout": layout}
        else:
            # On the CPU: Unsloth reads the longest without waiting for the GPU.
            lengths = [end - start for start, end in layout.rows]
            rows = {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}
        if self.attention != "varlen":
            # transformers makes no mask of its own if it gets one in 4D; none is read.
            rows["attention_mask"] = torch.empty(1, 1, 1, 1)
        return rows

    def __str__(self) -> str:
        parts = [
            IN_WORDS[self.attention] + (f" ({self.why})" if self.why else ""),
            f"{self.layers} layers in few functions each" if self.layers else "",
            f"LoRA in {self.groups} groups" if self.groups else "",
            self.plain,
            f"{self.norms} norms fused" if self.norms else "",
        ]
        return ", ".join(filter(None, parts))


def speed_up(model: Any, choices: Choices) -> FastPath:
    """Switch on what this model and device allow; the numbers it computes stay the same.

    Args:
        model: with PEFT's adapters.
    """
    inner = causal_lm(model)
    attention, why = switch_attention(inner, choices)
    cpu = choices.kind == "cpu"
    if cpu and not inner.is_gradient_checkpointing:
        keep_freed_memory()
    norms = fuse_norms(inner) if cpu and choices.fast_path else 0
    layers, groups, plain = 0, 0, ""
    obstacle = choices.why_plain or layer_obstacle(inner)
    if not obstacle:
        layers = len(rewrite_layers(inner, getattr(torch, choices.dtype), choices.nf4_copy))
    elif not cpu:  # Unsloth's own for many architectures, compiled for the others
        plain = f"layers as loaded ({obstacle})"
    elif choices.why_plain:
        plain = f"LoRA layer by layer ({obstacle})"
    else:
        groups = len(group_lora(model, choices.nf4_copy))
    return FastPath(attention, why, layers, groups, plain, norms)


@torch.no_grad()
def check_packing(model: Any, fast: FastPath, choices: Choices) -> None:
    """Refuse a model whose packed rows see each other, with the kernels that train them: some
    architectures carry a state from row to row.

    Two rows change places, and the first one's last token changes: all other states must stay.
    """
    run = decoder(model)
    device = next(run.parameters()).device
    long, short = [*range(20, 32)], [*range(32, 41)]

    def states(*rows: list[int]) -> list[torch.Tensor]:
        batch = pack([Encoded(ids, [], 0) for ids in rows], [])
        layout: Layout = batch["row_layout"]
        inputs = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        with choices.autocasting(device.type):
            output = run(**inputs, **fast.row_inputs(layout), use_cache=False)
        hidden = output.last_hidden_state[0]
        return [hidden[start:end].float() for start, end in layout.rows]

    training = model.training
    model.eval()  # dropout would differ between the two passes
    first, second = states(long, short)
    second_again, first_again = states(short, [*long[:-1], 41])
    model.train(training)
    expected = torch.cat([first[:-1], second])
    change = torch.cat([first_again[:-1], second_again]) - expected
    worst = float((change.norm(dim=1) / expected.norm(dim=1)).max())
    if not worst < LEAK:
        raise FasttuneError(
            f"packed rows see each other in this architecture: states change by {worst:.0%}",
            f"model type '{causal_lm(model).config.model_type}', {IN_WORDS[fast.attention]}",
            "train.packing=false gives each row a place of its own",
        )
