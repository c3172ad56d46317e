"""Attention over packed rows, row by row.

transformers keeps packed rows apart with one dense mask for the whole pack, so the cost grows with
the square of the pack's length. Here each row is a separate causal attention without a mask, and
cannot see another row. A beginning that all rows share is stored once, and each row reads it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from fasttune.encoding.batches import Layout
from fasttune.models.fast.blocks import BLOCK_ATTENTION, use_attention
from fasttune.models.limits import SHORT

ROW_ATTENTION = "fasttune_rows"
"""Name of `row_attention` in transformers."""


def row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [1, heads, tokens, head size] in, [1, tokens, heads, head
    size] out. Without `row_layout` this is transformers' own sdpa."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if row_layout is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    shared = row_layout.shared
    # Split instead of sliced: the gradient of each slice would be a whole tensor of zeros.
    sizes = [shared, *(end - start for start, end in row_layout.rows)]
    states = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    beginning = next(states)
    pieces = []
    for index, own in enumerate(states):
        # Queries of the shared beginning are computed with each row: then no mask is needed.
        q, k, v = (torch.cat(x, 2) for x in zip(beginning, own, strict=True)) if shared else own
        if q.dtype == torch.bfloat16 and q.shape[2] <= SHORT and not dropout:
            out = _short_attention(q, k, v, scaling or q.shape[-1] ** -0.5)
        else:
            k, v = (repeat_kv(x, module.num_key_value_groups) for x in (k, v))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
            )
        pieces.append(out if index == 0 else out[:, :, shared:])
    return torch.cat(pieces, 2).transpose(1, 2), None


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


def attend_by_row(model: Any) -> bool:
    """Switch a transformers model to `row_attention`, and return whether it supports this."""
    if attention_obstacle(model):
        return False
    use_attention(model, ROW_ATTENTION, row_attention)
    return True


def attention_obstacle(model: Any, windows: bool = False) -> str:
    """Why fasttune's attention would differ from the model's; "" if it would not.

    Args:
        windows: the attention supports sliding windows.
    """
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not use transformers' interface"
    if config._attn_implementation not in ("sdpa", ROW_ATTENTION, BLOCK_ATTENTION):
        return f"its attention is {config._attn_implementation}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention is capped"
    if getattr(config, "sliding_window", None) and not windows:
        return "its attention has a sliding window"
    return ""
