"""Phi's decoder layer in few functions, on any device.

In transformers' layer with PEFT's adapters, each of six matrices is three products, and gelu keeps
its result. Here it is a LayerNorm; one function for q, k, v and fc1, which read what that makes;
partial RoPE; attention behind transformers' interface; one function for `dense`; and one for gelu
and fc2, which keeps fc1's output alone and computes gelu again. None of them has a state, so blocks
may be checkpointed in any way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fasttune.models.fast.grouped import keep_dequantized, lora_linears, switched_off
from fasttune.models.head import decoder


class PhiLayer:
    """A forward of a `PhiDecoderLayer` whose six matrices have LoRA.

    Where an adapter is merged or switched off, this is transformers' own.
    """

    def __init__(self, layer: Any) -> None:
        self.layer, self._stock = layer, layer.forward
        self.matrices = _matrices(layer)
        layer.forward = self

    def release(self) -> None:
        """Give the layer its own forward back."""
        del self.layer.forward

    def __call__(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[rows, tokens, hidden] in and out; all else as transformers gives it to the layer."""
        if any(map(switched_off, self.matrices)):
            result: torch.Tensor = self._stock(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            return result
        layer, attention = self.layer, self.layer.self_attn
        states = layer.input_layernorm(hidden_states)
        *reading_one, dense, fc2 = self.matrices
        *heads, wide = lora_linears(states, reading_one)
        split = (*hidden_states.shape[:-1], -1, attention.head_dim)
        query, key, value = (each.view(split).transpose(1, 2) for each in heads)
        query, key = (_rotate(x, *position_embeddings) for x in (query, key))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        attended = _attend(attention, query, key, value, attention_mask, **kwargs)
        [out] = lora_linears(attended.flatten(2), [dense])
        [mlp] = lora_linears(wide, [fc2], activate=True)
        drop = layer.resid_dropout
        return drop(out) + drop(mlp) + hidden_states


def _matrices(layer: Any) -> tuple[Any, ...]:
    """The six of a layer, first the four that read what its norm makes."""
    attention, mlp = layer.self_attn, layer.mlp
    reading_one = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1)
    return (*reading_one, attention.dense, mlp.fc2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE (arXiv:2104.09864) on the first numbers of each head, as many as the cosines have.

    Args:
        x: [rows, heads, tokens, head size].
        cos, sin: [rows, tokens, rotated].
    """
    from transformers.models.phi.modeling_phi import rotate_half

    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


def _attend(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    **kw: Any,
) -> torch.Tensor:
    """[rows, heads, tokens, head size] each -> [rows, tokens, heads, head size]."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.phi.modeling_phi import eager_attention_forward

    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    output: torch.Tensor = attend(
        attention, query, key, value, mask, dropout=dropout, scaling=attention.scaling, **kw
    )[0]
    return output


def obstacle(model: Any) -> str:
    """Why a model's layers stay transformers' own; empty where they can be rewritten."""
    if model.config.model_type != "phi":
        return "this is made for Phi alone"
    if model.config.qk_layernorm:
        return "queries and keys are normed"
    for layer in decoder(model).layers:
        matrices, gelu = _matrices(layer), layer.mlp.activation_fn
        if not all(hasattr(each, "lora_A") for each in matrices):
            return "not all of its matrices have LoRA"
        if any(len(each.active_adapters) != 1 for each in matrices):
            return "several adapters are active"
        if type(gelu) is not nn.GELU or gelu.approximate != "tanh":
            return f"its activation is {type(gelu).__name__}"
    return ""


@torch.no_grad()
def rewrite_layers(model: Any, dtype: torch.dtype, nf4_copy: bool) -> list[PhiLayer]:
    """Give a Phi's layers, which no `obstacle` stands before, this forward.

    Args:
        dtype: in which they compute.
        nf4_copy: dequantise weights in 4 bits once and keep them, instead of in every pass.
    """
    layers = [PhiLayer(layer) for layer in decoder(model).layers]
    for each in layers:
        for matrix in each.matrices if nf4_copy else ():
            keep_dequantized(matrix.get_base_layer(), dtype)
    return layers
