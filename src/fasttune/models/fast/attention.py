"""Attention over packed rows.

transformers keeps packed rows apart with one dense mask for the whole pack, so the cost grows with
the square of the pack's length. Here each row is a separate causal attention and cannot see another
row. On a CPU the rows follow each other, and a beginning that all rows share is stored once. On a
GPU a kernel gets the rows' lengths: Unsloth's variable-length attention, or xformers'
memory-efficient attention (arXiv:2112.05682) on cards without Unsloth's kernels (T4).
"""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from typing import Any

import torch

from fasttune.encoding.batches import Layout
from fasttune.errors import reason
from fasttune.models.choices import SHORT, Attention, Choices
from fasttune.models.head import decoder

PACKED_ATTENTION = "fasttune_packed"
"""Name of `packed_attention` in transformers."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_layout: Layout | None = None,
    packed_seq_lengths: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, head size] in, [1, tokens, heads, head
    size] out. `row_layout` computes row by row, and `packed_seq_lengths`, [rows], with xformers'
    kernel. Without either, this is transformers' own sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    states = (query, key, value)
    if row_layout is not None:
        return _row_by_row(module, states, row_layout, dropout, scaling), None
    if packed_seq_lengths is not None:
        states = (query, *_repeated(module, key, value))
        return _in_blocks(states, packed_seq_lengths, dropout, scaling), None
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, *states, attention_mask, dropout, scaling, **kwargs
    )
    return result


def _repeated(module: Any, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values with a head for each head of the queries."""
    from transformers.integrations.sdpa_attention import repeat_kv

    return tuple(repeat_kv(x, getattr(module, "num_key_value_groups", 1)) for x in states)


def _row_by_row(
    module: Any,
    states: tuple[torch.Tensor, ...],
    layout: Layout,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    shared = layout.shared
    # Split instead of sliced: the gradient of each slice would be a whole tensor of zeros.
    sizes = [shared, *(end - start for start, end in layout.rows)]
    rows = zip(*(x.split(sizes, 2) for x in states), strict=True)
    beginning = next(rows)
    outputs = []
    for index, row in enumerate(rows):
        # Queries of the shared beginning are computed with each row: then no mask is needed.
        q, k, v = (torch.cat(x, 2) for x in zip(beginning, row, strict=True)) if shared else row
        if q.dtype == torch.bfloat16 and q.shape[2] <= SHORT and not dropout:
            output = _short_attention(q, k, v, scaling or q.shape[-1] ** -0.5)
        else:
            output = torch.nn.functional.scaled_dot_product_attention(
                q, *_repeated(module, k, v), dropout_p=dropout, is_causal=True, scale=scaling
            )
        outputs.append(output if index == 0 else output[:, :, shared:])
    return torch.cat(outputs, 2).transpose(1, 2)


def _short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention by whole matrices. Queries that share keys (grouped-query attention) are rows of
    one product."""
    heads, length, size = query.shape[1:]
    groups = key.shape[1]
    q = (query * scaling).reshape(groups, -1, size)
    mask = _causal_mask(q.dtype)[:length, :length].repeat(heads // groups, 1)
    scores = torch.baddbmm(mask.expand(groups, -1, -1), q, key[0].transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), value[0]).view(1, heads, length, size)


@cache
def _causal_mask(dtype: torch.dtype) -> torch.Tensor:
    return torch.full((SHORT, SHORT), -torch.inf, dtype=dtype).triu_(1)


@torch.compiler.disable  # Unsloth compiles blocks, but xformers chooses its kernel in Python
def _in_blocks(
    states: tuple[torch.Tensor, ...], lengths: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    from xformers import ops

    device = states[0].device
    if torch.is_autocast_enabled(device.type):  # autocast casts only for torch's own attention
        states = tuple(x.to(torch.get_autocast_dtype(device.type)) for x in states)
    q, k, v = (x.transpose(1, 2) for x in states)
    bias = _bias(tuple(lengths.tolist()), device)
    result: torch.Tensor = ops.memory_efficient_attention(
        q, k, v, attn_bias=bias, p=dropout, scale=scaling
    )
    return result


@lru_cache(maxsize=4)
def _bias(lengths: tuple[int, ...], device: torch.device) -> Any:
    """The bias for rows of these lengths, cached for all layers and for recomputed blocks."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    return BlockDiagonalCausalMask.from_seqlens(list(lengths), device=device)


def switch_attention(model: Any, choices: Choices) -> tuple[Attention, str]:
    """Switch a transformers model to the chosen attention, or to one mask if it does not work.
    Return the attention that is on, and why it is not the chosen one, or ""."""
    chosen = choices.attention
    if decoder(model).forward.__module__.startswith("unsloth."):
        return "varlen", ""  # Llama and its kin in Unsloth's own layers, on every GPU
    if model.config._attn_implementation.startswith("flash_attention"):
        return "varlen", ""  # transformers finds the rows by their positions
    if chosen == "mask":
        return chosen, ""
    why = attention_obstacle(model, windows=chosen == "varlen")
    if not why and chosen == "varlen":
        why = _switch_unsloth_on()
    elif not why and chosen == "memory_efficient":
        why = _kernel_obstacle(model, getattr(torch, choices.dtype))
    if why:
        return "mask", why
    if chosen != "varlen":
        use_packed_attention(model)
    return chosen, ""


def attention_obstacle(model: Any, windows: bool = False) -> str:
    """Why an attention, with or without sliding windows, would differ from the model's; or ""."""
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not use transformers' interface"
    if config._attn_implementation not in ("sdpa", PACKED_ATTENTION):
        return f"its attention is {config._attn_implementation}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention is capped"
    if getattr(config, "sliding_window", None) and not windows:
        return "its attention has a sliding window"
    return ""


def _kernel_obstacle(model: Any, dtype: torch.dtype) -> str:
    """Why xformers' kernel does not run forward and backward with the model's heads; or ""."""
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    device = next(model.parameters()).device
    state = torch.ones(1, heads, 4, size, device=device, dtype=dtype, requires_grad=True)
    try:
        _in_blocks((state, state, state), torch.tensor([1, 3]), 0.0, None).sum().backward()
        float(state.grad.sum())  # waits for the GPU, which reports errors late
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"xformers: {reason(error)}"
    return ""


def use_packed_attention(model: Any) -> None:
    """Register `packed_attention` in transformers, with the masks of sdpa, and switch a model to
    it."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
    model.config._attn_implementation = PACKED_ATTENTION


def _switch_unsloth_on() -> str:
    """Let Unsloth wrap transformers' sdpa for the calls with `packed_seq_lengths` that its kernels
    support; others reach sdpa with the dense mask. Return why it is not available, or ""."""
    if "unsloth.utils" not in sys.modules:  # importing it here would patch much of transformers
        return "Unsloth's CPU backend has no variable-length attention"
    from unsloth.utils.hf_packed_attention import enable_hf_packed_attention

    return "" if enable_hf_packed_attention() else "UNSLOTH_HF_PACKED_VARLEN is 0"
