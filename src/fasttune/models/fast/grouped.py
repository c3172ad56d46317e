"""LoRA layers that read the same input, computed together.

PEFT computes x A^T and (x A^T) B^T for every layer on its own, in the adapter's dtype. On a CPU
these small products cost more than their arithmetic. Layers that read one input (q, k and v; gate
and up) share the product with their stacked A, B is added in place, and
the backward pass keeps one input for all of them. The formulas are LoRA's own (arXiv:2106.09685):
y = x W^T + b + s (x A^T) B^T.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import gelu, linear, silu

Activation = Literal["none", "gelu", "silu"]


class _Grouped(torch.autograd.Function):
    """n layers over one input, or over what an activation makes of it. Arguments after that: the n
    frozen base layers, n As, n Bs.

    The base layers are kept, not their weights: those in 4 bits may be dequantised anew for the
    backward pass. Autocast is off: every product is in the input's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        up: torch.Tensor | None,
        scale: float,
        activation: Activation,
        bases: list[Any],
        *tensors: Any,
    ) -> tuple[torch.Tensor, ...]:
        count, dtype = len(bases), x.dtype
        a = torch.cat([t.to(dtype) for t in tensors[:count]])
        b = [t.to(dtype) for t in tensors[count:]]
        kept = x.reshape(-1, x.shape[-1])
        up = None if up is None else up.reshape(-1, up.shape[-1])
        ctx.bases, ctx.scale, ctx.activation, ctx.shape = bases, scale, activation, x.shape
        with torch.autocast(x.device.type, enabled=False):
            flat = _activated(kept, up, activation)
            low = flat @ a.t()  # [tokens, n r]
            outputs = []
            for base, bi, part in zip(bases, b, low.chunk(count, 1), strict=True):
                bias = None if base.bias is None else base.bias.to(dtype)
                y = linear(flat, weight_of(base, dtype), bias)
                y.addmm_(part, bi.t(), alpha=scale)
                outputs.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(kept, up, low, a, *b)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(gradients)
        kept, up, low, a, *b = ctx.saved_tensors
        dys = [g.reshape(-1, g.shape[-1]) for g in gradients]
        rank = low.shape[1] // count
        with torch.autocast(kept.device.type, enabled=False):
            dlow = torch.empty_like(low)
            dbs = []
            for i, (dy, bi) in enumerate(zip(dys, b, strict=True)):
                part = slice(i * rank, (i + 1) * rank)
                dlow[:, part] = dy @ bi
                dbs.append((dy.t() @ low[:, part]).float().mul_(ctx.scale))
            dlow.mul_(ctx.scale)
            flat = _activated(kept, up, ctx.activation)
            das = (dlow.t() @ flat).float().chunk(count)
            dx = dup = None
            if ctx.needs_input_grad[0]:
                dx = dlow @ a
                for dy, base in zip(dys, ctx.bases, strict=True):
                    dx.addmm_(dy, weight_of(base, dy.dtype))
                if ctx.activation == "gelu":
                    dx = torch.ops.aten.gelu_backward(dx, kept, approximate="tanh")
                elif ctx.activation == "silu":
                    dup = silu(kept).mul_(dx).view(ctx.shape)
                    dx = torch.ops.aten.silu_backward(dx.mul_(up), kept)
                dx = dx.view(ctx.shape)
        return (dx, dup, None, None, None, *das, *dbs)


def _activated(x: torch.Tensor, up: torch.Tensor | None, activation: Activation) -> torch.Tensor:
    """gelu(x) in the approximation by tanh, or silu(x) times `up`."""
    if activation == "gelu":
        return gelu(x, approximate="tanh")
    return silu(x).mul_(up) if activation == "silu" else x


def lora_linears(
    x: torch.Tensor,
    layers: Sequence[Any],
    activation: Activation = "none",
    up: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """What LoRA layers of PEFT with one adapter make of an input that all of them read.

    Args:
        x: [..., inputs]; under autocast it is cast first.
        activation: they read its gelu, in the approximation by tanh, or its silu times `up`, which
            is not kept for the backward pass but computed again.
        up: as `x`, of a gated MLP.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, up = x.to(dtype), None if up is None else up.to(dtype)
    name = layers[0].active_adapters[0]
    outputs: tuple[torch.Tensor, ...] = _Grouped.apply(
        x,
        up,
        float(layers[0].scaling[name]),
        activation,
        [layer.get_base_layer() for layer in layers],
        *[layer.lora_A[name].weight for layer in layers],
        *[layer.lora_B[name].weight for layer in layers],
    )
    return outputs


def switched_off(layer: Any) -> bool:
    """Whether a LoRA layer is one of its base alone, so that PEFT's own forward is to be taken."""
    return bool(layer.merged or layer.disable_adapters)


class _Outputs(threading.local):
    """What a thread's layers have yet to give away, by their places, and what it was made of."""

    input: torch.Tensor | None = None

    def __init__(self) -> None:
        self.ready: dict[int, torch.Tensor] = {}


class Group:
    """LoRA layers of PEFT that read the same input; the first one called computes for all, in each
    thread of Python by itself."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self._plain = [layer.forward for layer in layers]
        self._own = _Outputs()
        for at, layer in enumerate(layers):
            layer.forward = self._forward(at)

    def release(self) -> None:
        """Give the layers PEFT's own forward back."""
        for layer in self.layers:
            del layer.forward

    def _forward(self, at: int) -> Any:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if switched_off(self.layers[at]):
                result: torch.Tensor = self._plain[at](x, *args, **kwargs)
                return result
            own = self._own
            if own.input is not x or at not in own.ready:
                own.ready = dict(enumerate(lora_linears(x, self.layers)))
                own.input = x
            output = own.ready.pop(at)
            if not own.ready:
                own.input = None
            return output

        return forward


def weight_of(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a frozen layer as it multiplies, [outputs, inputs]. One in 4 bits is
    dequantised, unless `keep_dequantized` did so: by Unsloth's kernel where Unsloth runs on a GPU,
    into memory of its own, else by bitsandbytes."""
    weight: torch.Tensor = base.weight
    if getattr(weight, "quant_state", None) is None:
        return weight.to(dtype)
    kept: torch.Tensor | None = getattr(base, "fasttune_dequantized", None)
    if kept is not None and kept.dtype == dtype:
        return kept
    kernels = sys.modules.get("unsloth.kernels.utils")  # its CPU backend does without
    if kernels is not None:
        dequantized: torch.Tensor = kernels.fast_dequantize(weight, weight.quant_state)
        return dequantized.to(dtype)
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)


def keep_dequantized(base: Any, dtype: torch.dtype) -> None:
    """Dequantise a layer's weight in 4 bits for good: it never changes in training."""
    if getattr(base.weight, "quant_state", None) is not None:
        base.fasttune_dequantized = weight_of(base, dtype)


@torch.no_grad()
def group_lora(model: Any, nf4_copy: bool = True) -> list[Group]:
    """Group the model's LoRA layers by the input they read, which a pass over two tokens shows.

    Args:
        nf4_copy: dequantise weights in 4 bits once and keep them, instead of in every pass.
    """
    from peft.tuners.lora import LoraLayer

    seen: list[tuple[torch.Tensor, Any]] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((inputs[0], layer)))
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
    ]
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[int, list[Any]] = {}
    for source, layer in seen:
        groups.setdefault(id(source), []).append(layer)
        if nf4_copy:  # now: between activations the weights would leave holes in the heap
            keep_dequantized(layer.get_base_layer(), source.dtype)
    return [Group(layers) for layers in groups.values()]
