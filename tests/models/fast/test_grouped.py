"""LoRA layers computed together against PEFT's own forward, layer by layer."""

from __future__ import annotations

# isort: split
import pytest
import torch

from fasttune.config import LoraConfig, ModelConfig
from fasttune.models.fast import grouped
from fasttune.models.load import add_lora
from tests.conftest import choices_for, load_model, wake_adapters

IDS = torch.arange(40).reshape(2, 20) * 7 % 1000


def build(folder, quantization="none", precision="fp32"):
    config = ModelConfig(name=str(folder), quantization=quantization, precision=precision)
    choices = choices_for(config)
    model, _ = load_model(config, choices)
    model, _ = add_lora(model, LoraConfig(r=4, alpha=8), 1, choices)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wake_adapters(model).train()


def logits_and_gradients(model):
    model.zero_grad()
    logits = model(input_ids=IDS, use_cache=False).logits.float()
    (logits * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_outputs_and_gradients_are_those_of_peft(kind, quantization, request, monkeypatch):
    model = build(request.getfixturevalue(kind), quantization)
    expected, gradients = logits_and_gradients(model)
    calls = []
    compute = grouped.lora_linears
    monkeypatch.setattr(
        grouped, "lora_linears", lambda x, layers: calls.append(layers) or compute(x, layers)
    )
    groups = grouped.group_lora(model)
    found, grouped_gradients = logits_and_gradients(model)
    assert calls == groups  # each once, in the order of the layers
    assert (found - expected).abs().max() < 1e-5
    assert gradients.keys() == grouped_gradients.keys() and len(gradients) >= 24
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert scale > 0
        assert (grouped_gradients[name] - gradient).abs().max() <= 1e-5 * scale, name
    for group in groups:
        for layer in group:
            del layer.forward
    assert torch.equal(logits_and_gradients(model)[0], expected)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("tiny_phi", [["q_proj", "k_proj", "v_proj", "fc1"], ["dense"], ["fc2"]]),
        (
            "tiny_llama",
            [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
        ),
    ],
)
def test_layers_that_read_one_input_are_one_group(kind, names, request):
    model = build(request.getfixturevalue(kind))
    called = {module: name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    groups = [[called[layer] for layer in group] for group in grouped.group_lora(model)]
    assert groups == names * model.config.num_hidden_layers


@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_an_adapter_that_is_switched_off_is_off(kind, request):
    model = build(request.getfixturevalue(kind))
    with model.disable_adapter():
        expected = model(input_ids=IDS).logits
    grouped.group_lora(model)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)


@pytest.mark.parametrize(
    ("copy", "times"),
    # Two layers with six matrices; in each pass forward and backward, but for the four of the first
    # layer whose input takes no gradient.
    [(True, 12), (False, 2 * (12 + 8))],
    ids=["once", "in each pass"],
)
def test_how_often_a_base_in_four_bits_is_dequantised(copy, times, tiny_phi, monkeypatch):
    import bitsandbytes.functional as bnb

    model = build(tiny_phi, "nf4")
    calls = []
    dequantize = bnb.dequantize_4bit
    monkeypatch.setattr(
        bnb, "dequantize_4bit", lambda *a, **k: calls.append(1) or dequantize(*a, **k)
    )
    grouped.group_lora(model, nf4_copy=copy)
    if not copy:
        calls.clear()  # of the pass that finds the groups
    for _ in range(2):
        logits_and_gradients(model)
    assert len(calls) == times


def test_a_copy_of_the_base_changes_no_number(tiny_phi):
    found = []
    for copy in (True, False):
        model = build(tiny_phi, "nf4")
        grouped.group_lora(model, nf4_copy=copy)
        found.append(logits_and_gradients(model))
    (logits, gradients), (again, others) = found
    assert torch.equal(logits, again)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_in_bf16_the_grouped_gradients_are_no_further_from_fp32_than_peft(tiny_llama):
    exact = logits_and_gradients(build(tiny_llama))[1]
    model = build(tiny_llama, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        peft = logits_and_gradients(model)[1]
    grouped.group_lora(model)
    ours = logits_and_gradients(model)[1]

    def error(gradients):
        return sum(float((gradients[n] - g).norm() / g.norm()) for n, g in exact.items())

    assert error(ours) < 1.2 * error(peft)
