"""Decoder layers of Phi and Llama in few functions, on any device.

A layer consists of its norms, one function for all matrices that read the same input, RoPE,
attention behind transformers' interface, and one function for an activation and the matrix that
follows, which keeps only the activation's input. None has state, so layers can be checkpointed, and
computed in several threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from fasttune.models.fast.grouped import keep_dequantized, lora_linears, switched_off
from fasttune.models.head import decoder

HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

Attend = Callable[..., torch.Tensor]
"""Queries, keys and values -> the input of o_proj or dense, [rows, tokens, heads x head size]."""


class FastLayer(ABC):
    """The forward of a decoder layer whose matrices, `names`, all have LoRA. While an adapter is
    merged or disabled, the layer's original forward runs."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self, layer: Any) -> None:
        self.layer, self._original = layer, layer.forward
        self.matrices = self.find_matrices(layer)
        layer.forward = self

    @classmethod
    def find_matrices(cls, layer: Any) -> tuple[Any, ...]:
        return tuple(map(layer.get_submodule, cls.names))

    def __call__(self, hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """[rows, tokens, hidden] in and out; `inputs` are what transformers passes to a layer."""
        if any(map(switched_off, self.matrices)):
            result: torch.Tensor = self._original(hidden_states, **inputs)
            return result
        return self.compute(hidden_states, partial(_attend, self.layer.self_attn, **inputs))

    @staticmethod
    @abstractmethod
    def obstacle(layer: Any) -> str:
        """Why `compute` would differ from the layer's own forward; "" if it would not."""

    @abstractmethod
    def compute(self, states: torch.Tensor, attend: Attend) -> torch.Tensor:
        """[rows, tokens, hidden] in and out."""


class PhiLayer(FastLayer):
    """Attention and MLP in parallel, after one LayerNorm."""

    names = (*HEADS, "mlp.fc1", "self_attn.dense", "mlp.fc2")

    @staticmethod
    def obstacle(layer: Any) -> str:
        gelu = layer.mlp.activation_fn
        if type(gelu) is not nn.GELU or gelu.approximate != "tanh":
            return f"its activation is {type(gelu).__name__}"
        return "queries and keys are normalized" if layer.self_attn.config.qk_layernorm else ""

    def compute(self, states: torch.Tensor, attend: Attend) -> torch.Tensor:
        layer, (*reading_one, dense, fc2) = self.layer, self.matrices
        *heads, wide = lora_linears(layer.input_layernorm(states), reading_one)
        [out] = lora_linears(attend(*heads), [dense])
        [mlp] = lora_linears(wide, [fc2], "gelu")
        result: torch.Tensor = layer.resid_dropout(out) + layer.resid_dropout(mlp) + states
        return result


class LlamaLayer(FastLayer):
    """Attention, then a gated MLP, each after an RMSNorm."""

    names = (*HEADS, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

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
    *heads: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """RoPE, the key-value cache and attention behind transformers' interface; see `Attend`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.llama.modeling_llama import eager_attention_forward

    split = (*heads[0].shape[:-1], -1, attention.head_dim)
    query, key, value = (each.view(split).transpose(1, 2) for each in heads)
    query, key = (rotate(x, *position_embeddings) for x in (query, key))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    states = (query, key, value, attention_mask)
    output: torch.Tensor
    output, _ = attend(attention, *states, dropout=dropout, scaling=attention.scaling, **kwargs)
    return output.flatten(2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply RoPE (arXiv:2104.09864) to the first `rotated` numbers of each head.

    Args:
        x: [rows, heads, tokens, head size].
        cos, sin: [rows, tokens, rotated].
    """
    first, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    rotated: torch.Tensor = _Rotation.apply(first, cos[:, None], sin[:, None])
    return torch.cat((rotated, rest), -1) if rest.shape[-1] else rotated


class _Rotation(torch.autograd.Function):
    """y1 = x1 cos - x2 sin and y2 = x2 cos + x1 sin, where x1 and x2 are the halves of a head. The
    backward pass rotates by the negative angle."""

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


def layer_obstacle(model: Any) -> str:
    """Why a model's layers cannot be rewritten; "" if they can."""
    kind = LAYERS.get(model.config.model_type)
    if kind is None:
        return "only Phi and Llama are supported"
    if decoder(model).forward.__module__.startswith("unsloth."):
        return "Unsloth has its own layers for it"
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
    """Replace the forwards of a model's layers, for which `layer_obstacle` is "". `nf4_copy` keeps
    a dequantized copy of 4-bit weights, in `dtype`."""
    kind = LAYERS[model.config.model_type]
    layers = [kind(layer) for layer in decoder(model).layers]
    for each in layers:
        for matrix in each.matrices if nf4_copy else ():
            keep_dequantized(matrix.get_base_layer(), dtype)
    return layers
