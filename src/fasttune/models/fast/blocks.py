"""Attention over packed rows on a GPU, by kernels that are told where each row ends.

Unsloth's variable-length attention takes the lengths itself. Where its kernels do not run (a T4),
xformers' memory-efficient attention (arXiv:2112.05682) gets them as a block-diagonal causal bias.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch

from fasttune.errors import reason

BLOCK_ATTENTION = "fasttune_blocks"
"""transformers' name for xformers' attention."""


def block_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_seq_lengths: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, head size] in, [1, tokens, heads, head
    size] out. `packed_seq_lengths`, [rows], are the rows' tokens; without them this is
    transformers' own sdpa."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if packed_seq_lengths is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    groups = getattr(module, "num_key_value_groups", 1)
    states = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    return _in_blocks(*states, packed_seq_lengths, dropout, scaling), None


@torch.compiler.disable  # Unsloth compiles a model's blocks; xformers' choice of a kernel is Python
def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    from xformers import ops

    states = (query, key, value)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # which casts for torch's own attention, not for this one
        states = tuple(x.to(torch.get_autocast_dtype(kind)) for x in states)
    q, k, v = (x.transpose(1, 2) for x in states)
    bias = _bias(tuple(lengths.tolist()), query.device)
    result: torch.Tensor = ops.memory_efficient_attention(
        q, k, v, attn_bias=bias, p=dropout, scale=scaling
    )
    return result


@lru_cache(maxsize=4)
def _bias(lengths: tuple[int, ...], device: torch.device) -> Any:
    """All layers share it, and so do blocks that are computed again."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    return BlockDiagonalCausalMask.from_seqlens(list(lengths), device=device)


def attend_in_blocks(model: Any, dtype: torch.dtype) -> str:
    """Let a transformers model attend by xformers' kernel, after a try with the model's heads in a
    dtype on its device, forward and backward.

    Returns:
        Why it does not; empty where it does.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    device = next(model.parameters()).device
    state = torch.ones(1, heads, 4, size, device=device, dtype=dtype, requires_grad=True)
    try:
        _in_blocks(state, state, state, torch.tensor([1, 3]), 0.0, None).sum().backward()
        float(state.grad.sum())  # kernels fail late
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"xformers: {reason(error)}"
    AttentionInterface.register(BLOCK_ATTENTION, block_attention)
    AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)
    config._attn_implementation = BLOCK_ATTENTION
    return ""


def attend_by_length() -> str:
    """Switch Unsloth's variable-length attention on, for this process.

    It stands before transformers' sdpa and takes the calls with `packed_seq_lengths` that its
    kernels can take. The others go on to sdpa with the dense mask, which is made in any case.

    Returns:
        Why it cannot be had; empty where it is on.
    """
    if "unsloth.utils" not in sys.modules:  # importing it would patch half of transformers
        return "Unsloth's CPU backend has no variable-length attention"
    try:
        from unsloth.utils.hf_packed_attention import enable_hf_packed_attention
    except ImportError:
        return "this Unsloth has no variable-length attention"
    return "" if enable_hf_packed_attention() else "UNSLOTH_HF_PACKED_VARLEN is 0"
