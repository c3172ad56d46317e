"""Phi's gelu in one operation against transformers' own, and against fp32."""

from __future__ import annotations

import tests.unsloth_first  # noqa: F401

# isort: split
import torch
from transformers.activations import NewGELUActivation

from fasttune.config import ModelConfig
from fasttune.models.fast.fused import fuse_gelu
from tests.conftest import choices_for, load_model


def both(dtype: torch.dtype) -> list[torch.Tensor]:
    """Results and gradients, transformers' first."""
    found = []
    mlp = torch.nn.Sequential(NewGELUActivation())
    for _ in range(2):
        x = torch.linspace(-8, 8, 4001).to(dtype).requires_grad_()
        y = mlp(x)
        y.sum().backward()
        found += [y.detach().float(), x.grad.float()]
        fuse_gelu(mlp)
    assert type(mlp[0]) is torch.nn.GELU
    return found


def test_it_is_the_same_function_in_fp32():
    plain, plain_gradient, fused, fused_gradient = both(torch.float32)
    assert (fused - plain).abs().max() < 2e-6
    assert (fused_gradient - plain_gradient).abs().max() < 5e-6


def test_in_bf16_it_is_nearer_to_fp32():
    rounded = torch.linspace(-8, 8, 4001).bfloat16().float().requires_grad_()
    y = NewGELUActivation()(rounded)  # of the inputs that bf16 can hold
    y.sum().backward()
    plain, plain_gradient, fused, fused_gradient = both(torch.bfloat16)
    for one, other, wanted in (
        (plain, fused, y.detach()),
        (plain_gradient, fused_gradient, rounded.grad),
    ):
        assert (other - wanted).abs().mean() < (one - wanted).abs().mean()
        assert (other - wanted).abs().max() <= 2**-8 * 8


def test_a_phi_is_loaded_with_it(tiny_phi, tiny_llama):
    for folder, count in ((tiny_phi, 2), (tiny_llama, 0)):
        config = ModelConfig(name=str(folder), quantization="none", precision="fp32")
        model, _ = load_model(config, choices_for(config))
        kinds = [type(module) for module in model.modules()]
        assert NewGELUActivation not in kinds and kinds.count(torch.nn.GELU) == count
