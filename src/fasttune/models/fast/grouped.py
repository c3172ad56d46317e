"""LoRA layers that read the same input, computed together.

PEFT computes x A^T and (x A^T) B^T for every layer on its own, in the adapter's dtype. On a CPU
these small products cost more than their arithmetic. Layers that read one input (q, k and v; gate
and up; in Phi q, k, v and fc1) share the product with their stacked A, B is added in place, and
the backward pass keeps one input for all of them. Where a layer reads what gelu has made, as Phi's
fc2, gelu's input is kept alone, and gelu computed again. The formulas are LoRA's own
(arXiv:2106.09685): y = x W^T + b + s (x A^T) B^T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import gelu, linear


class _Grouped(torch.autograd.Function):
    """n layers over one input, or over its gelu. Arguments after that: the n frozen base layers, n
    As, n Bs.

    The base layers are kept, not their weights: those in 4 bits may be dequantised anew for the
    backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: float, activate: bool, bases: list[Any], *tensors: Any
    ) -> tuple[torch.Tensor, ...]:
        count = len(bases)
        dtype = x.dtype
        a = torch.cat([t.to(dtype) for t in tensors[:count]])
        b = [t.to(dtype) for t in tensors[count:]]
        kept = x.reshape(-1, x.shape[-1])
        flat = gelu(kept, approximate="tanh") if activate else kept
        low = flat @ a.t()  # [tokens, n r]
        outputs = []
        for base, up, part in zip(bases, b, low.chunk(count, 1), strict=True):
            y = linear(flat, weight_of(base, dtype), base.bias)
            y.addmm_(part, up.t(), alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(kept, low, a, *b)
        ctx.bases, ctx.scale, ctx.activate, ctx.shape = bases, scale, activate, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        count = len(gradients)
        kept, low, a, *b = ctx.saved_tensors
        dys = [g.reshape(-1, g.shape[-1]) for g in gradients]
        rank = low.shape[1] // count
        dlow = torch.empty_like(low)
        dbs = []
        for i, (dy, up) in enumerate(zip(dys, b, strict=True)):
            part = slice(i * rank, (i + 1) * rank)
            dlow[:, part] = dy @ up
            dbs.append((dy.t() @ low[:, part]).float().mul_(ctx.scale))
        dlow.mul_(ctx.scale)
        flat = gelu(kept, approximate="tanh") if ctx.activate else kept
        das = (dlow.t() @ flat).float().chunk(count)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dlow @ a
            for dy, base in zip(dys, ctx.bases, strict=True):
                dx.addmm_(dy, weight_of(base, dy.dtype))
            if ctx.activate:
                dx = torch.ops.aten.gelu_backward(dx, kept, approximate="tanh")
            dx = dx.view(ctx.shape)
        return (dx, None, None, None, *das, *dbs)


class Group:
    """LoRA layers of PEFT that read the same input; the first one called computes for all.

    Args:
        activation: the gelu whose result they read and nobody else; from now on it passes its input
            on to them.
    """

    def __init__(self, layers: list[Any], activation: Any = None) -> None:
        self.layers, self.activation = layers, activation
        if activation is not None:
            plain = activation.forward
            activation.forward = lambda x: plain(x) if self._off(layers[0]) else x
        self._plain = [layer.forward for layer in layers]
        self._input: torch.Tensor | None = None
        self._ready: dict[int, torch.Tensor] = {}
        for at, layer in enumerate(layers):
            layer.forward = self._forward(at)

    def release(self) -> None:
        """Give the layers PEFT's own forward back."""
        for module in (*self.layers, *([self.activation] if self.activation is not None else [])):
            del module.forward

    @staticmethod
    def _off(layer: Any) -> bool:
        """Whether PEFT's own forward is to be taken."""
        return bool(layer.merged or layer.disable_adapters)

    def _forward(self, at: int) -> Any:
        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            layer = self.layers[at]
            if self._off(layer):
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
            self.activation is not None,
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
    made: dict[int, tuple[torch.Tensor, Any]] = {}
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append((inputs[0], layer)))
        for layer in layers
    ]
    handles += [
        module.register_forward_hook(lambda m, _, output: made.update({id(output): (output, m)}))
        for module in _activations(model)
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
    return [Group(layers, made.get(at, (None, None))[1]) for at, layers in groups.items()]


def _activations(model: Any) -> list[Any]:
    """The gelus of MLPs whose other modules are two layers: before it, and behind it."""
    return [
        child
        for module in model.modules()
        for child in module.children()
        if type(child) is torch.nn.GELU
        and child.approximate == "tanh"
        and len([*module.children()]) == 3
    ]
