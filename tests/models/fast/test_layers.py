"""Layers rewritten, against transformers and PEFT: the code that a card runs, on a CPU."""

from __future__ import annotations

# isort: split
import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from fasttune.config import LoraConfig, ModelConfig
from fasttune.encoding.batches import pack
from fasttune.encoding.encode import Encoded
from fasttune.machine import Device
from fasttune.models.architectures import FAMILIES
from fasttune.models.fast.fast import speed_up
from fasttune.models.fast.fused import fuse_gelu, fuse_norms
from fasttune.models.fast.layers import FastLayer, rotate
from fasttune.models.load import nf4
from tests.conftest import choices_for, tiny_model, wake_adapters

A100 = Device("A100", "cuda", 40e9, bf16=True, capability=(8, 0))
CPU = Device("CPU", "cpu", 24e9, bf16=True)
LENGTHS = (12, 7, 9)
MATRICES = {"phi": 6, "llama": 7}
IDS = [(torch.arange(length) * 97 + 31 * length) % 50000 for length in LENGTHS]


def plain_model(folder, quantized=False):
    """With adapters that do something, in fp32, without dropout."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=nf4(torch.float32) if quantized else None,
        **({} if "llama" in str(folder) else {"resid_pdrop": 0.0}),
    )
    torch.manual_seed(2)
    family = FAMILIES[model.config.model_type]
    lora = PeftConfig(r=4, lora_alpha=8, target_modules=list(family.targets))
    return wake_adapters(get_peft_model(model, lora)).train()


def rewritten(folder, device=CPU, quantized=False, **settings):
    """The same, sped up as on a device; the fast path beside it."""
    model = plain_model(folder, quantized)
    fuse_gelu(model)
    config = ModelConfig(
        precision="fp32", quantization="nf4" if quantized else "none", fast_path="on", **settings
    )
    return model, speed_up(model, choices_for(config, device))


def loss_of(model, inputs, rows):
    """The sum of the rows' losses on all of their tokens but the first."""
    logits = model(**inputs, use_cache=False).logits
    return sum(loss_of_one(logits[place], ids) for place, ids in zip(rows, IDS, strict=True))


def row_by_row(model):
    """The reference: each row alone."""
    alone = (model(input_ids=ids[None], use_cache=False).logits[0] for ids in IDS)
    return sum(map(loss_of_one, alone, IDS))


def loss_of_one(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")


def packed(model, fast):
    rows = [ids.tolist() for ids in IDS]
    batch = pack([Encoded(ids, [], 0) for ids in rows], [])
    layout = batch["row_layout"]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    places = [(0, slice(start, end)) for start, end in layout.rows]
    return loss_of(model, inputs | fast.row_inputs(layout), places)


def padded(model, fast):
    inputs = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(IDS, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(ids) for ids in IDS], batch_first=True
        ),
    }
    return loss_of(model, inputs, [(at, slice(length)) for at, length in enumerate(LENGTHS)])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def count_rewritten(model):
    return sum(isinstance(vars(layer).get("forward"), FastLayer) for layer in layers_of(model))


def layers_of(model):
    return model.get_base_model().model.layers


@pytest.fixture(params=["tiny_phi", "tiny_llama"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("run", [packed, padded])
@pytest.mark.parametrize(
    ("device", "quantized", "copy"),
    [(CPU, False, "off"), (A100, False, "off"), (CPU, True, "on"), (CPU, True, "off")],
    ids=["cpu", "card", "nf4 copied", "nf4 in each pass"],
)
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    device, quantized, copy, run, checkpointing, folder
):
    reference = plain_model(folder, quantized)
    expected = row_by_row(reference)
    wanted = gradients(reference, expected)
    model, fast = rewritten(folder, device, quantized, nf4_copy=copy)
    assert fast.layers == count_rewritten(model) == 2 and not fast.groups and not fast.plain
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    loss = run(model, fast)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    found = gradients(model, loss)
    assert found.keys() == wanted.keys() and len(found) == 2 * 2 * MATRICES[model.config.model_type]
    phi = model.config.model_type == "phi"
    for name, gradient in wanted.items():
        largest, error = gradient.abs().max(), (found[name] - gradient).abs().max()
        small = 1e-6 if phi else 1e-6 * max(1, largest)  # a tiny Llama has gradients above 3
        assert largest > 0 and error <= 1e-5 * largest and error <= small, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_an_mlp_only_the_input_of_its_activation_is_kept(checkpointing, folder):
    model, fast = rewritten(folder)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    wide = []

    def keep(tensor):
        if tensor.numel() == model.config.intermediate_size * sum(LENGTHS):
            wide.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed(model, fast)
    each = 2 if model.config.model_type == "llama" else 1  # gate and up
    assert len(wide) == (0 if checkpointing else 2 * each)


def test_under_autocast_it_is_as_near_to_fp32_as_peft(folder):
    exact = gradients(reference := plain_model(folder), row_by_row(reference))
    with torch.autocast("cpu", torch.bfloat16):
        peft = row_by_row(reference)
    peft = gradients(reference, peft)
    model, fast = rewritten(folder, A100)
    with torch.autocast("cpu", torch.bfloat16):
        loss = packed(model, fast)
        ours = gradients(model, loss)  # backward under autocast as well: it must not matter

    def error(found):
        return sum(float((found[name] - each).norm() / each.norm()) for name, each in exact.items())

    assert 0 < error(ours) < 1.2 * error(peft)


def test_answers_with_a_cache_are_those_of_transformers(folder):
    ids = IDS[0][None]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 50256}
    expected = plain_model(folder).eval().generate(input_ids=ids, **settings)
    model, _ = rewritten(folder)
    assert torch.equal(model.eval().generate(input_ids=ids, **settings), expected)
    with model.disable_adapter():
        off = model.generate(input_ids=ids, **settings)
    assert not torch.equal(off, expected)


def test_an_adapter_that_is_switched_off_or_merged_is_transformers_own(folder):
    ids = IDS[0][None]
    model, _ = rewritten(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    fuse_gelu(base)
    fuse_norms(base.requires_grad_(False))  # these stay ours
    with torch.no_grad():
        with model.eval().disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
        ours = model(input_ids=ids).logits
        model.merge_adapter()
        assert (model(input_ids=ids).logits - ours).abs().max() < 1e-5
    for layer in layers_of(model):
        del layer.forward
    assert count_rewritten(model) == 0


@pytest.mark.parametrize(
    ("settings", "lora", "why"),
    [
        ({"fast_path": "off"}, {}, "model.fast_path is off"),
        ({}, {}, "model.fast_path is off by default on a GPU"),
        ({"fast_path": "on"}, {"dropout": 0.1}, "lora.dropout gives each layer"),
        ({"fast_path": "on"}, {"dora": True}, "DoRA"),
    ],
)
def test_settings_that_leave_the_layers_to_peft(settings, lora, why, tiny_phi):
    model = plain_model(tiny_phi)
    choices = choices_for(ModelConfig(precision="fp32", **settings), A100, lora=LoraConfig(**lora))
    fast = speed_up(model, choices)
    assert fast.plain.startswith(f"layers as loaded ({why}") and fast.plain in str(fast)
    assert fast.layers == count_rewritten(model) == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda model: setattr(model.config, "qk_layernorm", True),
            "keys are normalized",
        ),
        (lambda model: setattr(model.config, "model_type", "phi3"), "only Phi and Llama"),
        (
            lambda model: setattr(layers_of(model)[1].mlp, "activation_fn", torch.nn.ReLU()),
            "its activation is ReLU",
        ),
        (
            lambda model: setattr(layers_of(model)[1].mlp, "fc2", torch.nn.Linear(4, 4)),
            "not all of its matrices have LoRA",
        ),
        (
            lambda model: (
                model.add_adapter("second", PeftConfig(r=4, target_modules=["fc1"])),
                model.base_model.set_adapter(["default", "second"]),
            ),
            "several adapters are active",
        ),
    ],
)
def test_models_that_keep_their_own_layers(change, why, tiny_phi):
    model = plain_model(tiny_phi)
    fuse_gelu(model)
    change(model)
    config = ModelConfig(precision="fp32", quantization="none", fast_path="on")
    fast = speed_up(model, choices_for(config, A100))
    assert why in fast.plain and count_rewritten(model) == 0


def test_with_the_models_own_dropout_it_draws_as_transformers_does(phi2_tokenizer):
    folder = tiny_model("phi", phi2_tokenizer, resid_pdrop=0.3)
    model, _ = rewritten(folder)
    for layer in layers_of(model):
        layer.resid_dropout.p = 0.3
    ids = IDS[0][None]
    torch.manual_seed(5)
    ours = model(input_ids=ids, use_cache=False).logits
    for layer in layers_of(model):
        del layer.forward
    torch.manual_seed(5)
    assert (model(input_ids=ids, use_cache=False).logits - ours).abs().max() < 1e-5


def test_llama_with_another_activation_keeps_its_own_layers(tiny_llama):
    model = plain_model(tiny_llama)
    layers_of(model)[1].mlp.act_fn = torch.nn.ReLU()
    fast = speed_up(model, choices_for(ModelConfig(precision="fp32"), CPU))
    assert fast.groups and not count_rewritten(model)


@pytest.mark.parametrize("rotated", [8, 16], ids=["half", "whole"])
def test_rope_is_that_of_transformers_and_rounded_less(rotated):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(3)
    x, gradient = torch.randn(2, 1, 3, 50, 16).unbind(0)
    angles = torch.rand(1, 50, rotated // 2).repeat(1, 1, 2) * 6
    cos, sin = angles.cos(), angles.sin()

    def through(function, dtype):
        own = x.to(dtype).requires_grad_()
        y = function(own, cos.to(dtype), sin.to(dtype))
        return y, *torch.autograd.grad(y, own, gradient.to(dtype))

    def reference(x, cos, sin):
        turned, _ = apply_rotary_pos_emb(x[..., :rotated], x[..., :rotated], cos, sin)
        return torch.cat((turned, x[..., rotated:]), -1)

    exact = through(reference, torch.float32)
    for ours, expected in zip(through(rotate, torch.float32), exact, strict=True):
        assert (ours - expected).abs().max() < 1e-6
    narrow = through(rotate, torch.bfloat16), through(reference, torch.bfloat16)
    for ours, theirs, expected in zip(*narrow, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - expected).norm() < (theirs - expected).norm()
