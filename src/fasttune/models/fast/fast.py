"""What makes a training step fast, put onto a model with fresh adapters.

On CUDA that is the attention of packed rows, and with `model.fast_path=on` Phi's layers (those of
Llama and its kin are Unsloth's own there); the rest of the model is as Unsloth has made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fasttune.encoding.batches import Layout, pack
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.models.choices import Attention, Choices
from fasttune.models.fast.attention import attend_by_row, attention_obstacle
from fasttune.models.fast.blocks import attend_by_length, attend_in_blocks
from fasttune.models.fast.grouped import group_lora
from fasttune.models.fast.layers import layer_obstacle, rewrite_layers
from fasttune.models.fast.norm import fuse_norms
from fasttune.models.head import causal_lm, decoder
from fasttune.models.heap import keep_freed_memory

LEAK = 0.1
"""Share of its length by which a row's state may change with its neighbours. Rounding in 16 bits
makes up to 0.01, a leak 0.4 in a tiny Gemma and above 1 in others."""

SAID = {
    "rows": "rows attend one by one",
    "varlen": "variable-length attention",
    "memory_efficient": "xformers' attention in blocks",
    "mask": "one mask for all rows of a pack",
}


@dataclass(frozen=True)
class FastPath:
    """Which parts of the fast path a model takes.

    Attributes:
        attention: how the rows of a pack are kept apart, see `Choices.attention`.
        why: what stood against the attention that was chosen; empty where that one is on.
        layers: how many decoder layers have a forward of our own.
        groups: how many groups of LoRA layers are computed together in the others.
        plain: whose the layers are otherwise, and what stood against both; empty where one is on.
        norms: how many RMSNorms are fused.
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
        """What the decoder must be given beside ids and restarting positions.

        Args:
            layout: of the pack; None for padded rows, whose mask is all they need.
        """
        if layout is None or self.attention == "mask":
            return {}
        if self.attention == "rows":
            rows: dict[str, Any] = {"row_layout": layout}
        else:
            # On the CPU: Unsloth reads the longest without waiting for the GPU.
            lengths = [end - start for start, end in layout.rows]
            rows = {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}
        if self.attention != "varlen":
            # transformers makes no mask of its own where it is given one in 4D; none is read.
            rows["attention_mask"] = torch.empty(1, 1, 1, 1)
        return rows

    def __str__(self) -> str:
        said = [SAID[self.attention] + (f" ({self.why})" if self.why else "")]
        if self.layers:
            said.append(f"{self.layers} layers in few functions each")
        elif self.groups:
            said.append(f"LoRA in {self.groups} groups")
        elif self.plain:
            said.append(self.plain)
        return ", ".join([*said, *([f"{self.norms} norms fused"] if self.norms else [])])


def speed_up(model: Any, choices: Choices) -> FastPath:
    """Switch on what this model and device allow; the numbers it computes stay the same.

    Args:
        model: with PEFT's adapters.
    """
    inner = causal_lm(model)
    on, why = _switch_attention(inner, choices)
    cpu = choices.kind == "cpu"
    if cpu and not inner.is_gradient_checkpointing:
        keep_freed_memory()
    norms = fuse_norms(inner) if cpu and choices.fast_path else 0
    stands = choices.why_plain or layer_obstacle(inner)
    if not stands:
        layers = rewrite_layers(inner, getattr(torch, choices.dtype), choices.nf4_copy)
        return FastPath(on, why, layers=len(layers), norms=norms)
    if not cpu:  # its own for many architectures, compiled for the others
        return FastPath(on, why, plain=f"layers as loaded ({stands})")
    if choices.why_plain:
        return FastPath(on, why, plain=f"LoRA layer by layer ({stands})", norms=norms)
    groups = group_lora(model, choices.nf4_copy)
    return FastPath(on, why, groups=len(groups), norms=norms)


def _switch_attention(model: Any, choices: Choices) -> tuple[Attention, str]:
    """Put a model's packed rows onto the chosen attention: what is on then, and why another."""
    chosen = choices.attention
    if decoder(model).forward.__module__.startswith("unsloth."):
        return "varlen", ""  # Llama and its kin in Unsloth's own layers, on every GPU
    if model.config._attn_implementation.startswith("flash_attention"):
        return "varlen", ""  # transformers finds the rows by their positions
    if chosen == "mask":
        return chosen, ""
    why = attention_obstacle(model, windows=chosen == "varlen")
    if not why and chosen == "varlen":
        why = attend_by_length()
    elif not why and chosen == "memory_efficient":
        why = attend_in_blocks(model, getattr(torch, choices.dtype))
    elif not why:
        attend_by_row(model)
    return ("mask", why) if why else (chosen, "")


@torch.no_grad()
def check_packing(model: Any, fast: FastPath, choices: Choices) -> None:
    """Make sure that rows of a pack do not see each other, with the kernels that train them.

    Two rows change places, and the first one's last token is another: all other states stay.

    Raises:
        FasttuneError: they do not. Some architectures carry a state on from row to row.
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
    model.eval()  # two passes with dropout would be two functions
    first, second = states(long, short)
    second_again, first_again = states(short, [*long[:-1], 41])
    model.train(training)
    expected = torch.cat([first[:-1], second])
    change = torch.cat([first_again[:-1], second_again]) - expected
    worst = float((change.norm(dim=1) / expected.norm(dim=1)).max())
    if not worst < LEAK:
        raise FasttuneError(
            f"packed rows see each other in this architecture: states change by {worst:.0%}",
            f"model type '{causal_lm(model).config.model_type}', {SAID[fast.attention]}",
            "train.packing=false gives each row a place of its own",
        )
