"""Decoder layers of Phi and Llama in few functions, on any device.

In transformers' layers with PEFT's adapters each matrix is three products, and each small operation
keeps what it makes. Here a layer is its norms; one function for all matrices that read one input;
RoPE; attention behind transformers' interface; and one function for the activation and the matrix
behind it, which keeps the activation's input alone and computes it again. None of them has a state,
so blocks may be checkpointed in any way, and computed in several threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fasttune.models.fast.grouped import keep_dequantized, lora_linears, switched_off
from fasttune.models.head import decoder

Attend = Callable[..., torch.Tensor]
"""Queries, keys and values, [rows, tokens, heads x head size] each -> what o_proj or dense reads.
"""


class FastLayer(ABC):
    """A forward of a decoder layer whose matrices all have LoRA.

    Where an adapter is merged or switched off, this is transformers' own.

    Attributes:
        layer: transformers'.
        matrices: its LoRA layers.
    """

    def __init__(self, layer: Any) -> None:
        self.layer, self._stock = layer, layer.forward
        self.matrices = self.find_matrices(layer)
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

        def attend(*heads: torch.Tensor) -> torch.Tensor:
            return _attend(
                self.layer.self_attn,
                heads,
                position_embeddings,
                past_key_values,
                attention_mask,
                **kwargs,
            )

        return self.compute(hidden_states, attend)

    @staticmethod
    @abstractmethod
    def find_matrices(layer: Any) -> tuple[Any, ...]:
        """In the order in which `compute` takes them."""

    @staticmethod
    @abstractmethod
    def obstacle(layer: Any) -> str:
        """What a layer does that `compute` would not; empty where there is nothing."""

    @abstractmethod
    def compute(self, states: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[rows, tokens, hidden] in and out."""


class PhiLayer(FastLayer):
    """Attention and MLP beside each other, behind one LayerNorm."""

    @staticmethod
    def find_matrices(layer: Any) -> tuple[Any, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        reading_one = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1)
        return (*reading_one, attention.dense, mlp.fc2)

    @staticmethod
    def obstacle(layer: Any) -> str:
        gelu = layer.mlp.activation_fn
        if type(gelu) is not nn.GELU or gelu.approximate != "tanh":
            return f"its activation is {type(gelu).__name__}"
        return "queries and keys are normed" if layer.self_attn.config.qk_layernorm else ""

    def compute(self, states: torch.Tensor, attend: Attend) -> torch.Tensor:
        layer, (*reading_one, dense, fc2) = self.layer, self.matrices
        *heads, wide = lora_linears(layer.input_layernorm(states), reading_one)
        [out] = lora_linears(attend(*heads), [dense])
        [mlp] = lora_linears(wide, [fc2], "gelu")
        result: torch.Tensor = layer.resid_dropout(out) + layer.resid_dropout(mlp) + states
        return result


class LlamaLayer(FastLayer):
    """Attention, then a gated MLP, each behind an RMSNorm."""

    @staticmethod
    def find_matrices(layer: Any) -> tuple[Any, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        heads = (attention.q_proj, attention.k_proj, attention.v_proj)
        return (*heads, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)

    @staticmethod
    def obstacle(layer: Any) -> str:
        from transformers.activations import SiLUActivation

        kind = type(layer.mlp.act_fn)
        return "" if kind in (nn.SiLU, SiLUActivation) else f"its activation is {kind.__name__}"

    def compute(self, states: torch.Tensor, attend: Attend) -> torch.Tensor:
        layer, (*heads, o_proj, gate_proj, up_proj, down_proj) = self.layer, self.matrices
        attended = attend(*lora_linears(layer.input_layernorm(states), heads))
        states = states + lora_linears(attended, [o_proj])[0]
        gate, up = lora_linears(layer.post_attention_layernorm(states), [gate_proj, up_proj])
        return states + lora_linears(gate, [down_proj], "silu", up)[0]


LAYERS: dict[str, type[FastLayer]] = {"phi": PhiLayer, "llama": LlamaLayer}
"""By model type."""


def _attend(
    attention: Any,
    heads: tuple[torch.Tensor, ...],
    position_embeddings: Any,
    cache: Any,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> torch.Tensor:
    """RoPE, the cache and attention behind transformers' interface.

    Args:
        heads: queries, keys and values, [rows, tokens, heads x head size] each.

    Returns:
        [rows, tokens, heads x head size].
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    split = (*heads[0].shape[:-1], -1, attention.head_dim)
    query, key, value = (each.view(split).transpose(1, 2) for each in heads)
    query, key = (rotate(x, *position_embeddings) for x in (query, key))
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    output: torch.Tensor = attend(
        attention, query, key, value, mask, dropout=dropout, scaling=attention.scaling, **kwargs
    )[0]
    return output.flatten(2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE (arXiv:2104.09864) on the first numbers of each head, as many as the cosines have.

    Args:
        x: [rows, heads, tokens, head size].
        cos, sin: [rows, tokens, rotated].
    """
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    result: torch.Tensor = _Rotation.apply(turned, cos[:, None], sin[:, None])
    return torch.cat((result, rest), -1) if rest.shape[-1] else result


class _Rotation(torch.autograd.Function):
    """y1 = x1 cos - x2 sin and y2 = x2 cos + x1 sin, with x1 and x2 the halves of a head; backwards
    by the same angle."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        (x1, x2), (sin1, sin2) = x.chunk(2, -1), sin.chunk(2, -1)
        y = x * cos
        y1, y2 = y.chunk(2, -1)
        y1.addcmul_(x2, sin1, value=-1)
        y2.addcmul_(x1, sin2)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (g1, g2), (sin1, sin2) = gradient.chunk(2, -1), sin.chunk(2, -1)
        dx = gradient * cos
        dx1, dx2 = dx.chunk(2, -1)
        dx1.addcmul_(g2, sin2)
        dx2.addcmul_(g1, sin1, value=-1)
        return dx, None, None


def obstacle(model: Any) -> str:
    """Why a model's layers stay transformers' own; empty where they can be rewritten."""
    kind = LAYERS.get(model.config.model_type)
    if kind is None:
        return "this is made for Phi and Llama"
    if decoder(model).forward.__module__.startswith("unsloth."):
        return "Unsloth has layers of its own for it"
    for layer in decoder(model).layers:
        matrices = kind.find_matrices(layer)
        if not all(hasattr(each, "lora_A") for each in matrices):
            return "not all of its matrices have LoRA"
        if any(len(each.active_adapters) != 1 for each in matrices):
            return "several adapters are active"
        if why := kind.obstacle(layer):
            return why
    return ""


@torch.no_grad()
def rewrite_layers(model: Any, dtype: torch.dtype, nf4_copy: bool) -> list[FastLayer]:
    """Give a model's layers, which no `obstacle` stands before, a forward of ours.

    Args:
        dtype: in which they compute.
        nf4_copy: dequantise weights in 4 bits once and keep them, instead of in every pass.
    """
    kind = LAYERS[model.config.model_type]
    layers = [kind(layer) for layer in decoder(model).layers]
    for each in layers:
        for matrix in each.matrices if nf4_copy else ():
            keep_dequantized(matrix.get_base_layer(), dtype)
    return layers
