"""RMSNorm and Phi's activation in fewer operations than in transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


def fuse_gelu(model: Any) -> int:
    """Replace transformers' gelu_new by torch's gelu with `approximate="tanh"`, and return the
    number of replaced modules.

    Both are 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), from arXiv:1606.08415, section 2.
    transformers' eight operations keep four tensors of the MLP's width for the backward pass,
    torch's keeps only its input.
    """
    from transformers.activations import NewGELUActivation

    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
                count += 1
    return count


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^(-1/2) (arXiv:1910.07467). The gradient
    dx = r (g w) - x r^3 mean(g w x) needs only the input and one number per token.

    It computes on fp32 copies, in place: on a CPU, converting bf16 to fp32 and then multiplying is
    faster than multiplying bf16 with fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return wide.mul_(r).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        wide = x.to(torch.float32, copy=True)
        scaled = (gradient * weight).float()
        mean = torch.einsum("...h,...h->...", scaled, wide)[..., None].div_(x.shape[-1])
        dx = scaled.sub_(wide.mul_(mean * r * r)).mul_(r)
        return dx.to(x.dtype), None, None


def fuse_norms(model: Any) -> int:
    """Replace the forward of frozen RMSNorms that compute the same, and return their number. Some
    architectures use the weight differently: Gemma adds 1 to it."""
    count = 0
    for module in model.modules():
        eps, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
        if eps is None or weight is None or weight.requires_grad:
            continue
        probe = torch.linspace(-2, 2, weight.shape[0]).to(weight)[None, None]
        fused = partial(_rms_norm, weight, eps)
        if torch.allclose(fused(probe).float(), module(probe).float(), rtol=0.02, atol=0.02):
            module.forward = fused
            count += 1
    return count


def _rms_norm(weight: torch.Tensor, eps: float, hidden_states: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _RMSNorm.apply(hidden_states, weight, eps)
    return result
