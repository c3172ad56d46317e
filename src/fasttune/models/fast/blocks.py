"""Attention over packed rows on a GPU, by kernels that get the rows' lengths.

Unsloth's variable-length attention reads the lengths themselves. On GPUs without its kernels (T4),
xformers' memory-efficient attention (arXiv:2112.05682) gets them as a block-diagonal causal bias.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import torch

from fasttune.errors import reason

BLOCK_ATTENTION = "fasttune_blocks"
"""Name of `block_attention` in transformers."""


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
    size] out. `packed_seq_lengths`, [rows], are the lengths of the rows; without them this is
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


@torch.compiler.disable  # Unsloth compiles blocks, but xformers chooses its kernel in Python
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
    if torch.is_autocast_enabled(kind):  # autocast casts only for torch's own attention
        states = tuple(x.to(torch.get_autocast_dtype(kind)) for x in states)
    q, k, v = (x.transpose(1, 2) for x in states)
    bias = _bias(tuple(lengths.tolist()), query.device)
    result: torch.Tensor = ops.memory_efficient_attention(
        q, k, v, attn_bias=bias, p=dropout, scale=scaling
    )
    return result


@lru_cache(maxsize=4)
def _bias(lengths: tuple[int, ...], device: torch.device) -> Any:
    """The bias for rows of these lengths, cached for all layers and for recomputed blocks."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    return BlockDiagonalCausalMask.from_seqlens(list(lengths), device=device)


def attend_in_blocks(model: Any, dtype: torch.dtype) -> str:
    """Switch a transformers model to xformers' kernel if it runs with the model's heads in this
    dtype on its device, forward and backward.

    Returns:
        Why it does not run; "" if it does.
    """
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    device = next(model.parameters()).device
    state = torch.ones(1, heads, 4, size, device=device, dtype=dtype, requires_grad=True)
    try:
        _in_blocks(state, state, state, torch.tensor([1, 3]), 0.0, None).sum().backward()
        float(state.grad.sum())  # waits for the GPU, which reports errors late
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"xformers: {reason(error)}"
    use_attention(model, BLOCK_ATTENTION, block_attention)
    return ""


def use_attention(model: Any, name: str, attention: Any) -> None:
    """Register an attention in transformers, with the masks of sdpa, and switch a model to it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.config._attn_implementation = name


def attend_by_length() -> str:
    """Switch on Unsloth's variable-length attention in this process.

    It wraps transformers' sdpa and handles the calls with `packed_seq_lengths` that its kernels
    support. Other calls reach sdpa with the dense mask, which always exists.

    Returns:
        Why it is not available; "" if it is on.
    """
    if "unsloth.utils" not in sys.modules:  # importing it here would patch much of transformers
        return "Unsloth's CPU backend has no variable-length attention"
    try:
        from unsloth.utils.hf_packed_attention import enable_hf_packed_attention
    except ImportError:
        return "this Unsloth has no variable-length attention"
    return "" if enable_hf_packed_attention() else "UNSLOTH_HF_PACKED_VARLEN is 0"
