"""The fused RMSNorm against transformers' own."""

from __future__ import annotations

# isort: split
import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fasttune.models.fast.fused import fuse_norms


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)], ids=["fp32", "bf16"]
)
def test_output_and_gradient_are_those_of_transformers(dtype, bound):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(64))
    x = torch.randn(2, 30, 64, dtype=dtype) * torch.logspace(-3, 3, 30, dtype=dtype)[:, None]
    upstream = torch.randn(2, 30, 64, dtype=dtype)
    results = []
    for _ in range(2):
        given = x.clone().requires_grad_()
        output = norm(given)
        output.backward(upstream)
        results.append((output.detach(), given.grad))
        assert fuse_norms(norm) == 1
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < bound


def test_a_norm_that_means_something_else_by_its_weight_is_left_alone():
    norm = GemmaRMSNorm(64).requires_grad_(False)
    norm.variance_epsilon = norm.eps  # as if it were one of Llama's
    assert fuse_norms(norm) == 0 and "forward" not in vars(norm)


def test_a_norm_that_is_trained_is_left_alone():
    assert fuse_norms(LlamaRMSNorm(64)) == 0
