"""Attention over packed rows, row by row.

transformers keeps packed rows apart with one dense mask over the whole pack, so the cost grows
with the square of the pack. Here every row is a causal attention of its own: no mask, nothing to
leak. A beginning that all rows share is stored once and read by each of them.
"""

from __future__ import annotations

from typing import Any

from fasttune.models import backend  # noqa: F401  before the libraries that Unsloth patches

# isort: split
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fasttune.packing import Layout

NAME = "fasttune_rows"


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
    if row_layout is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    shared = row_layout.shared
    pieces = []
    for at, (start, end) in enumerate(row_layout.rows):
        # The queries of the shared beginning go along: a square attention needs no mask.
        q, k, v = (_row(x, shared, start, end) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling
        )
        pieces.append(out if at == 0 else out[:, :, shared:])
    return torch.cat(pieces, 2).transpose(1, 2), None


def _row(states: torch.Tensor, shared: int, start: int, end: int) -> torch.Tensor:
    own = states[:, :, start:end]
    return torch.cat((states[:, :, :shared], own), 2) if shared else own


AttentionInterface.register(NAME, row_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def can_attend_by_row(model: Any) -> bool:
    """Whether the architecture's attention is plain: no window, no cap, through transformers'
    interface."""
    config = model.config
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and config._attn_implementation in ("sdpa", NAME)
        and not getattr(config, "sliding_window", None)
        and not getattr(config, "attn_logit_softcapping", None)
    )
