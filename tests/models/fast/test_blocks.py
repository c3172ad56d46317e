"""Packed rows on a GPU: which attention a card gets, what reaches its kernel, and the numbers.

The kernels take CUDA tensors. They are replaced by a reference that materialises what they were
told about the rows, so what holds here is the wiring; no kernel of a GPU ran.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
import xformers.ops
from fasttune_plugins.chatml import CHATML
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

from fasttune.config import LoraConfig, ModelConfig, RunConfig, TrainConfig
from fasttune.encoding.batches import Layout, pack
from fasttune.encoding.encode import IGNORED, Encoded, Span
from fasttune.errors import FasttuneError
from fasttune.generation.generator import Generator
from fasttune.machine import Device
from fasttune.models.choices import decide
from fasttune.models.fast import attention as attentions
from fasttune.models.fast.attention import PACKED_ATTENTION
from fasttune.models.fast.fast import FastPath, check_packing, speed_up
from fasttune.models.load import add_lora
from fasttune.planning.devices import GPUS
from fasttune.runs import Run
from fasttune.training.callbacks import Progress
from fasttune.training.trainer import Trainer
from tests.conftest import SETTLED, choices_for, load_model, wake_adapters

pytestmark = pytest.mark.slow

T4, A100, CPU = GPUS["t4"], GPUS["a100"], Device("CPU", "cpu", 16e9)
LENGTHS = (7, 12, 1, 5)


def row(length: int, seed: int) -> Encoded:
    ids = torch.randint(20, 4000, (length,), generator=torch.Generator().manual_seed(seed))
    given = max(1, length // 2)  # nothing predicts the first token
    spans = [Span("prompt", 0, given, False), Span("response", given, length, True)]
    return Encoded(ids.tolist(), spans, given)


EXAMPLES = [row(length, seed) for seed, length in enumerate(LENGTHS)]


def allowed(layout: Layout) -> torch.Tensor:
    """[tokens, tokens]: a token sees those of its own row up to itself."""
    tokens = layout.rows[-1][1]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, end in layout.rows:
        for at in range(start, end):
            seen[at, start : at + 1] = True
    return seen


@pytest.fixture(params=["tiny_phi", "tiny_llama"])
def model(request):
    """In fp32, with Phi's partial RoPE or with grouped queries."""
    folder = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def xformers_kernel(monkeypatch):
    """xformers' kernel by a reference; what reaches it is kept."""
    calls = []

    def reference(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert type(attn_bias) is BlockDiagonalCausalMask and p == 0
        assert query.shape == key.shape == value.shape  # [1, tokens, heads, head size]
        assert query.dtype == key.dtype == value.dtype
        tokens = query.shape[1]
        bias = attn_bias.materialize((tokens, tokens), dtype=query.dtype)
        states = (x.transpose(1, 2) for x in (query, key, value))
        calls.append((attn_bias.q_seqinfo.seqstart_py, query.shape, query.dtype))
        return scaled_dot_product_attention(*states, attn_mask=bias, scale=scale).transpose(1, 2)

    monkeypatch.setattr(xformers.ops, "memory_efficient_attention", reference)
    return calls


def choices_of(device: Device, precision: str = "auto"):
    return choices_for(ModelConfig(precision=precision), device)


def logits(model, batch, fast):
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    inputs |= fast.row_inputs(batch["row_layout"])
    return model.lm_head(model.model(**inputs, use_cache=False).last_hidden_state)[0]


def alone(model, example):
    return model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]


def assert_those_of_the_rows(model, fast):
    """Logits and gradients of a pack, against every row alone under transformers' own sdpa."""
    model.zero_grad()
    batch = pack(EXAMPLES, ["response"])
    found = logits(model, batch, fast)
    cross_entropy(found[batch["places"]], batch["targets"], reduction="sum").backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.config._attn_implementation = "sdpa"
    expected = [alone(model, example) for example in EXAMPLES]
    assert (found - torch.cat(expected)).abs().max() < 1e-5
    for one, example in zip(expected, EXAMPLES, strict=True):
        labels = torch.tensor(example.labels)[1:]
        cross_entropy(one[:-1], labels, reduction="sum").backward()
    assert len(gradients) > 10
    for name, parameter in model.named_parameters():
        if name in gradients:
            scale = float(parameter.grad.abs().max())
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-5 * max(1.0, scale), name


# Which card gets which


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        (T4, "auto", "memory_efficient"),
        (T4, "fp32", "mask"),
        (CPU, "auto", "rows"),
    ],
)
def test_the_attention_of_a_device(device, precision, expected, model, xformers_kernel):
    fast = speed_up(get_peft_model(model, PeftConfig(r=2)), choices_of(device, precision))
    assert (fast.attention, fast.why) == (expected, "")
    assert fast.by_row == (expected == "rows")
    name = "sdpa" if expected == "mask" else PACKED_ATTENTION
    assert model.config._attn_implementation == name


def test_without_xformers_kernel_there_is_a_mask_and_the_reason(model):
    fast = speed_up(model, choices_of(T4))
    assert fast.attention == "mask" and model.config._attn_implementation == "sdpa"
    assert str(fast).startswith("one mask for all rows of a pack (xformers: No operator found")


def test_without_unsloths_function_there_is_a_mask_and_the_reason(model):
    fast = speed_up(model, choices_of(A100))
    assert fast.attention == "mask" and model.config._attn_implementation == "sdpa"
    assert fast.why == "Unsloth's CPU backend has no variable-length attention"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("sliding_window", 8, "its attention has a sliding window"),
        ("attn_logit_softcapping", 50.0, "its attention is capped"),
        ("_attn_implementation", "eager", "its attention is eager"),
    ],
)
@pytest.mark.parametrize("device", [T4, CPU], ids=lambda d: d.name)
def test_attention_that_is_not_plain_keeps_the_mask(
    setting, value, said, device, model, xformers_kernel
):
    setattr(model.config, setting, value)
    before = model.config._attn_implementation
    fast = speed_up(model, choices_of(device))
    assert (fast.attention, fast.why) == ("mask", said)
    assert said in str(fast) and model.config._attn_implementation == before


def test_flash_attention_finds_the_rows_itself(model):
    model.config._attn_implementation = "flash_attention_2"
    assert speed_up(model, choices_of(A100)).attention == "varlen"


# What arrives


def test_the_bias_is_our_layout():
    layout = pack(EXAMPLES, ["response"])["row_layout"]
    tokens = layout.rows[-1][1]
    bias = attentions._bias(tuple(end - start for start, end in layout.rows), torch.device("cpu"))
    assert torch.equal(bias.materialize((tokens, tokens)) == 0, allowed(layout))


@pytest.mark.parametrize("attention", ["varlen", "memory_efficient"])
def test_lengths_are_those_of_the_layout_on_the_cpu(attention):
    layout = pack(EXAMPLES, ["response"])["row_layout"]
    inputs = FastPath(attention).row_inputs(layout)
    lengths = inputs["packed_seq_lengths"]
    assert lengths.tolist() == list(LENGTHS)
    assert lengths.dtype == torch.int32 and lengths.device.type == "cpu"
    # Unsloth's needs the dense mask to check the rows; xformers' must have none made.
    assert ("attention_mask" in inputs) == (attention == "memory_efficient")


def test_padded_rows_and_the_mask_get_nothing():
    layout = pack(EXAMPLES, ["response"])["row_layout"]
    assert FastPath("mask").row_inputs(layout) == {}
    for attention in ("rows", "varlen", "memory_efficient", "mask"):
        assert FastPath(attention).row_inputs(None) == {}


# The numbers


def test_xformers_rows_are_the_rows_alone(model, xformers_kernel):
    fast = speed_up(model, choices_of(T4))
    del xformers_kernel[:]  # it was tried first
    assert_those_of_the_rows(model, fast)
    config = model.config
    assert len(xformers_kernel) == config.num_hidden_layers
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for starts, shape, _ in xformers_kernel:
        assert starts == [*accumulate(LENGTHS, initial=0)]
        assert tuple(shape) == (1, sum(LENGTHS), heads, size)  # 80 in Phi


def test_no_mask_over_the_pack_is_made_for_xformers(model, xformers_kernel, monkeypatch):
    fast = speed_up(model, choices_of(T4))
    shapes = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        shapes.append(tuple(attention_mask.shape))
        return attentions.packed_attention(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, PACKED_ATTENTION, spy)
    with torch.no_grad():
        logits(model, pack(EXAMPLES, ["response"]), fast)
    assert shapes == [(1, 1, 1, 1)] * model.config.num_hidden_layers


def test_the_kernel_gets_what_autocast_makes_of_the_states(model, xformers_kernel):
    fast = speed_up(model, choices_of(T4))
    del xformers_kernel[:]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits(model, pack(EXAMPLES, ["response"]), fast)
    assert {dtype for _, _, dtype in xformers_kernel} == {torch.bfloat16}


def test_without_lengths_it_is_the_attention_of_transformers(model, xformers_kernel):
    speed_up(model, choices_of(T4))
    del xformers_kernel[:]
    ids = torch.tensor([EXAMPLES[0].input_ids, EXAMPLES[0].input_ids])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
        model.config._attn_implementation = "sdpa"
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, found)
    assert not xformers_kernel


def trainer_for(folder, attention, tmp_path, max_length=16, checkpointing="off"):
    """A trainer on a GPU's path, with its packs, in fp32; its adapters are not 0."""
    settings = ModelConfig(
        name=str(folder), quantization="none", precision="fp32", max_length=max_length
    )
    train = TrainConfig(batch_size=1, gradient_checkpointing=checkpointing, **SETTLED)
    config = RunConfig(model=settings, train=train)
    choices = replace(decide(config, T4), attention=attention, optimizer="adamw_torch")
    base, tokenizer = load_model(settings, choices)
    model, _ = add_lora(base, LoraConfig(r=4), 1, choices)
    wake_adapters(model, std=0.2)
    generator = Generator(model, tokenizer, CHATML, choices)
    trainer = Trainer(config, generator, EXAMPLES, [], Run(tmp_path), [Progress()])
    return trainer, trainer.collator(EXAMPLES)


def assert_a_step_of_the_rows(folder, trainer):
    """Loss and gradients of a step, against transformers and PEFT on every row alone."""
    model = trainer.model
    loss = trainer.training_step(model, [*range(len(EXAMPLES))])
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = get_peft_model(plain, model.peft_config["default"]).eval()
    reference.load_state_dict(model.state_dict())
    total = torch.zeros(())
    for example in EXAMPLES:
        labels = torch.tensor(example.labels)[1:]
        total = total + cross_entropy(alone(reference, example)[:-1], labels, reduction="sum")
    learned = sum(sum(label != IGNORED for label in e.labels[1:]) for e in EXAMPLES)
    (total / learned).backward()
    assert float(loss) == pytest.approx(float(total) / learned, rel=1e-5)
    expected = {n: p.grad for n, p in reference.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        largest = float(expected[name].abs().max())
        assert (gradient - expected[name]).abs().max() <= 1e-4 * largest + 1e-7, name


@pytest.mark.parametrize("attention", ["memory_efficient", "mask"])
@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_a_step_of_the_trainer_is_that_of_the_rows(
    kind, attention, xformers_kernel, request, tmp_path
):
    folder = request.getfixturevalue(kind)
    trainer, batches = trainer_for(folder, attention, tmp_path)
    assert trainer.fast.attention == attention and len(batches) == 2
    del xformers_kernel[:]
    assert_a_step_of_the_rows(folder, trainer)
    calls = len(batches) * trainer.model.config.num_hidden_layers
    assert len(xformers_kernel) == (calls if attention == "memory_efficient" else 0)


def test_blocks_that_are_computed_again_have_the_same_rows(tiny_phi, xformers_kernel, tmp_path):
    trainer, batches = trainer_for(tiny_phi, "memory_efficient", tmp_path, checkpointing="unsloth")
    del xformers_kernel[:]
    assert_a_step_of_the_rows(tiny_phi, trainer)
    assert len(xformers_kernel) == 2 * len(batches) * trainer.model.config.num_hidden_layers


# Rows that see each other are found before training


class Leaky(FastPath):
    """Gives the decoder an all-ones mask, under which rows of a pack see each other."""

    def row_inputs(self, layout):
        return {"attention_mask": torch.ones(1, layout.rows[-1][1], dtype=torch.long)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_each_other_are_refused(model, dtype):
    model.train().to(dtype)
    choices = choices_of(CPU)
    for attention in ("mask", "rows"):
        check_packing(model, FastPath(attention), choices)
        model.config._attn_implementation = PACKED_ATTENTION
    with pytest.raises(FasttuneError) as caught:
        check_packing(model, Leaky("mask"), choices)
    assert "packed rows see each other" in caught.value.message
    assert model.config.model_type in caught.value.where
    assert "train.packing=false" in caught.value.hint
    assert model.training


def test_rows_that_see_their_own_future_are_refused(model):
    class Seeing(FastPath):
        def row_inputs(self, layout):
            tokens = layout.rows[-1][1]
            same = allowed(layout) | allowed(layout).T
            return {"attention_mask": torch.where(same, 0.0, -1e9).view(1, 1, tokens, tokens)}

    with pytest.raises(FasttuneError):
        check_packing(model, Seeing("mask"), choices_of(CPU))


def test_the_same_through_the_code_of_a_card():
    """Also Unsloth's own attention and layers, which exist there only."""
    file = Path(__file__).with_name("as_on_a_card.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1"},
        cwd=file.parents[3],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
