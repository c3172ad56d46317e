"""LoRA layers that read the same input, computed together.

PEFT computes x A^T and (x A^T) B^T for each layer, in the adapter's dtype; on a CPU, these small
products cost more than their arithmetic. Here layers that read the same input (q, k and v; gate and
up) share one product with their stacked A, and keep one input. LoRA (arXiv:2106.09685):
y = x W^T + b + s (x A^T) B^T.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.functional import gelu, linear, silu

Activation = Literal["none", "gelu", "silu"]


class _Grouped(torch.autograd.Function):
    """n layers that read the same input, or the same activation of it. `tensors` are n As, n Bs.
    Every product is in the input's dtype, without autocast."""

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
    """gelu(x), approximated with tanh; or silu(x) times `up`; or x."""
    if activation == "gelu":
        return gelu(x, approximate="tanh")
    return silu(x).mul_(up) if activation == "silu" else x


def lora_linears(
    x: torch.Tensor,
    layers: Sequence[Any],
    activation: Activation = "none",
    up: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Compute PEFT's LoRA layers, each with one active adapter, on the input that all of them read.

    Args:
        x: [..., inputs].
        activation: apply gelu (approximated with tanh) to `x`, or multiply its silu with `up`, in
            the shape of `x`. The backward pass recomputes it.
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
    """Whether a layer's adapter is merged or disabled, which only PEFT's forward handles."""
    return bool(layer.merged or layer.disable_adapters)


def _share_input(layers: list[Any]) -> None:
    """Let the first layer that a thread calls compute the outputs of all of them."""
    originals = [layer.forward for layer in layers]
    thread = threading.local()  # .outputs: an input, and its outputs by index, until returned

    def forward(index: int, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if switched_off(layers[index]):
            result: torch.Tensor = originals[index](x, *args, **kwargs)
            return result
        source, ready = getattr(thread, "outputs", (None, {}))
        if source is not x or index not in ready:
            ready = dict(enumerate(lora_linears(x, layers)))
        output: torch.Tensor = ready.pop(index)
        thread.outputs = (x, ready) if ready else (None, {})
        return output

    for index, layer in enumerate(layers):
        layer.forward = partial(forward, index)


def weight_of(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a frozen layer in a dtype, [outputs, inputs]. A 4-bit one is the copy from
    `keep_dequantized`, or dequantized by Unsloth's kernel on a GPU, else by bitsandbytes."""
    weight: torch.Tensor = base.weight
    if getattr(weight, "quant_state", None) is None:
        return weight.to(dtype)
    kept: torch.Tensor | None = getattr(base, "fasttune_dequantized", None)
    if kept is not None and kept.dtype == dtype:
        return kept
    kernels = sys.modules.get("unsloth.kernels.utils")  # not imported by its CPU backend
    if kernels is not None:
        dequantized: torch.Tensor = kernels.fast_dequantize(weight, weight.quant_state)
        return dequantized.to(dtype)
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(weight.data, weight.quant_state).to(dtype)


def keep_dequantized(base: Any, dtype: torch.dtype) -> None:
    """Keep a dequantized copy of a layer's 4-bit weight, which training never changes."""
    if getattr(base.weight, "quant_state", None) is not None:
        base.fasttune_dequantized = weight_of(base, dtype)


@torch.no_grad()
def group_lora(model: Any, nf4_copy: bool = True) -> list[list[Any]]:
    """Compute LoRA layers that read the same input, in a pass over two tokens, together. Return the
    groups of layers. `nf4_copy` keeps a dequantized copy of 4-bit weights."""
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
        if nf4_copy:  # later, between activations, the copies would fragment the heap
            keep_dequantized(layer.get_base_layer(), source.dtype)
    for layers in groups.values():
        _share_input(layers)
    return list(groups.values())
