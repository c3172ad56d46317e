"""Packed rows must not see each other, and every batch must train EOS.

The loss is a poor witness (it moves by a few thousandths when rows leak), so logits and gradients
are compared with transformers in fp32, row by row.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from fasttune.discovery import load_plugins
from fasttune.encode import IGNORED, encode
from fasttune.packing import NO_SECTION, features, left_pad, pack, pad, section_names

ROWS = [
    {"instruction": "Add 2 and 3.", "input": "", "reasoning": "2 + 3 = 5.", "output": "5"},
    {
        "instruction": "日本の首都は？",
        "input": "地理",
        "reasoning": "東京。",
        "output": "東京です。",
    },
    {"instruction": "Say hi.", "input": "", "reasoning": "A greeting.", "output": '"Hi"'},
]


@pytest.fixture(scope="module")
def encoded(phi2_tokenizer):
    template = load_plugins().template("reasoning")
    return [encode(template, row, phi2_tokenizer) for row in ROWS]


@pytest.fixture(scope="module")
def examples(encoded):
    names = section_names(encoded)
    return [features(row, names) for row in encoded]


@pytest.fixture(params=["sdpa", "eager"])
def model(request, tiny_phi):
    return AutoModelForCausalLM.from_pretrained(
        tiny_phi, dtype=torch.float32, attn_implementation=request.param
    ).eval()


def alone(model, example):
    """Logits [tokens, vocabulary] of one row by itself."""
    return model(input_ids=torch.tensor([example["input_ids"]]), use_cache=False).logits[0]


def test_packed_logits_are_those_of_the_rows_alone(model, examples):
    batch = pack(examples)
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        expected = torch.cat([alone(model, example) for example in examples])
        leaking = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            use_cache=False,
        ).logits[0]
    assert (packed - expected).abs().max() < 1e-4
    # The control: the comparison does notice rows that see each other.
    assert (leaking - expected).abs().max() > 1e-2


def test_packed_gradients_are_the_sum_of_the_rows(model, examples):
    def loss(logits, labels):
        return torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(labels)[1:], ignore_index=IGNORED, reduction="sum"
        )

    batch = pack(examples)
    packed = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits[0]
    loss(packed, batch["labels"][0].tolist()).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for example in examples:
        loss(alone(model, example), example["labels"]).backward()
    assert got
    for name, parameter in model.named_parameters():
        if name in got:
            scale = parameter.grad.abs().max()
            assert (got[name] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-6, name


def test_the_first_label_of_each_packed_row_is_ignored(examples):
    batch = pack(examples)
    assert set(batch) == {"input_ids", "labels", "sections", "position_ids"}
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) == len(examples)
    assert all(batch["labels"][0, start] == IGNORED for start in starts)


@pytest.mark.parametrize("collate", [pack, lambda rows: pad(rows, pad_id=50256)])
def test_every_row_trains_its_eos_although_padding_is_eos_too(collate, examples, phi2_tokenizer):
    labels = collate(examples)["labels"]
    assert (labels == phi2_tokenizer.eos_token_id).sum() == len(examples)
    learned = sum(label != IGNORED for example in examples for label in example["labels"])
    assert (labels != IGNORED).sum() == learned


def test_sections_mark_exactly_the_learned_tokens(encoded, examples):
    names = section_names(encoded)
    assert names == ["reasoning", "response", "eos"]
    for example in examples:
        for label, section in zip(example["labels"], example["sections"], strict=True):
            assert (label == IGNORED) == (section == NO_SECTION)
        assert example["sections"][-1] == names.index("eos")


def test_padding_masks_itself(examples):
    batch = pad(examples, pad_id=7)
    for index, example in enumerate(examples):
        length = len(example["input_ids"])
        assert batch["input_ids"][index, :length].tolist() == example["input_ids"]
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (
            batch["input_ids"].shape[1] - length
        )
        assert (batch["labels"][index, length:] == IGNORED).all()


def test_left_padding():
    batch = left_pad([[1, 2, 3], [4]], pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
