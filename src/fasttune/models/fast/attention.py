"""Attention over packed rows, row by row.

transformers keeps packed rows apart with one dense mask over the whole pack, so the cost grows
with the square of the pack. Here every row is a causal attention of its own: no mask, nothing to
leak. A beginning that all rows share is stored once and read by each of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from fasttune.encoding.batches import Layout
from fasttune.models.fast.blocks import BLOCK_ATTENTION
from fasttune.models.limits import SHORT

ROW_ATTENTION = "fasttune_rows"
"""transformers' name for it."""


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
    size] out. Without a layout this is transformers' own sdpa."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if row_layout is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    shared = row_layout.shared
    # Split, not sliced: the gradient of a slice is a whole tensor of zeros around it.
    sizes = [shared, *(end - start for start, end in row_layout.rows)]
    states = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    beginning = next(states)
    pieces = []
    for at, own in enumerate(states):
        # The queries of the shared beginning go along: a square attention needs no mask.
        q, k, v = (torch.cat(x, 2) for x in zip(beginning, own, strict=True)) if shared else own
        if q.dtype == torch.bfloat16 and q.shape[2] <= SHORT and not dropout:
            out = _short_attention(q, k, v, scaling or q.shape[-1] ** -0.5)
        else:
            k, v = (repeat_kv(x, module.num_key_value_groups) for x in (k, v))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
            )
        pieces.append(out if at == 0 else out[:, :, shared:])
    return torch.cat(pieces, 2).transpose(1, 2), None


def _short_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Queries that read the same keys (grouped-query attention) are rows of one product."""
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
    """Let a transformers model attend row by row, where the architecture's attention is plain.

    Returns:
        Whether it does.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if obstacle(model):
        return False
    AttentionInterface.register(ROW_ATTENTION, row_attention)
    AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
    model.config._attn_implementation = ROW_ATTENTION
    return True


def obstacle(model: Any, windows: bool = False) -> str:
    """What an architecture's attention has that an attention of our own would leave out; empty
    where it is plain.

    Args:
        windows: sliding windows count as plain.
    """
    config = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention is not behind transformers' interface"
    if config._attn_implementation not in ("sdpa", ROW_ATTENTION, BLOCK_ATTENTION):
        return f"its attention is {config._attn_implementation}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention is capped"
    if getattr(config, "sliding_window", None) and not windows:
        return "its attention has a sliding window"
    return ""
