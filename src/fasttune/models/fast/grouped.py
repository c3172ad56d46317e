"""LoRA layers that read the same input, computed together.

PEFT computes x A^T and (x A^T) B^T for every layer on its own, in the adapter's dtype. On a CPU
these small products cost more than their arithmetic. Layers that read one input (q, k and v; gate
and up; in Phi q, k, v and fc1) share the product with their stacked A, B is added in place, and
the backward pass keeps one input for all of them. The formulas are LoRA's own (arXiv:2106.09685):
y = x W^T + b + s (x A^T) B^T.
"""

from __future__ import annotations

from typing import Any

import torch


class _Grouped(torch.autograd.Function):
    """n layers over one input. Arguments after the scale: the n frozen base layers, n As, n Bs.

    The base layers are kept, not their weights: those in 4 bits may be dequantised anew for the
    backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: float, bases: list[Any], *tensors: Any
    ) -> tuple[torch.Tensor, ...]:
        count = len(bases)
        dtype = x.dtype
        a = torch.cat([t.to(dtype) for t in tensors[:count]])
        b = [t.to(dtype) for t in tensors[count:]]
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()  # [tokens, n r]
        outputs = []
        for base, up, part in zip(bases, b, low.chunk(count, 1), strict=True):
            y = torch.nn.functional.linear(flat, weight_of(base, dtype), base.bias)
            y.addmm_(part, up.t(), alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(flat, low, a, *b)
        ctx.bases, ctx.scale, ctx.shape = bases, scale, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(gradients)
        flat, low, a, *b = ctx.saved_tensors
        dys = [g.reshape(-1, g.shape[-1]) for g in gradients]
        rank = low.shape[1] // count
        dlow = torch.empty_like(low)
        dbs = []
        for i, (dy, up) in enumerate(zip(dys, b, strict=True)):
            part = slice(i * rank, (i + 1) * rank)
            dlow[:, part] = dy @ up
            dbs.append((dy.t() @ low[:, part]).float().mul_(ctx.scale))
        dlow.mul_(ctx.scale)
        das = (dlow.t() @ flat).float().chunk(count)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dlow @ a
            for dy, base in zip(dys, ctx.bases, strict=True):
                dx.addmm_(dy, weight_of(base, dy.dtype))
            dx = dx.view(ctx.shape)
        return (dx, None, None, *das, *dbs)


class Group:
    """LoRA layers of PEFT that read the same input; the first one called computes for all."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self._plain = [layer.forward for layer in layers]
        self._input: torch.Tensor | None = None
        self._ready: dict[int, torch.Tensor] = {}
        for at, layer in enumerate(layers):
            layer.forward = self._forward(at)

    def release(self) -> None:
        """Give the layers PEFT's own forward back."""
        for layer in self.layers:
            del layer.forward

    def _forward(self, at: int) -> Any:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            layer = self.layers[at]
            if layer.merged or layer.disable_adapters:
                result: torch.Tensor = self._plain[at](x, *args, **kwargs)
                return result
            if self._input is not x or at not in self._ready:
                self._ready = dict(enumerate(self._compute(x)))
                self._input = x
            output = self._ready.pop(at)
            if not self._ready:
                self._input = None
            return output

        return forward

    def _compute(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bases = [layer.get_base_layer() for layer in self.layers]
        name = self.layers[0].active_adapters[0]
        outputs: tuple[torch.Tensor, ...] = _Grouped.apply(
            x,
            float(self.layers[0].scaling[name]),
            bases,
            *[layer.lora_A[name].weight for layer in self.layers],
            *[layer.lora_B[name].weight for layer in self.layers],
        )
        return outputs


def weight_of(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a frozen layer as it multiplies; one in 4 bits is dequantised, unless
    `keep_dequantized` did so."""
    weight: torch.Tensor = base.weight
    if getattr(weight, "quant_state", None) is None:
        return weight
    kept: torch.Tensor | None = getattr(base, "fasttune_dequantized", None)
    if kept is not None and kept.dtype == dtype:
        return kept
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
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((inputs[0], layer)))
        for layer in layers
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
