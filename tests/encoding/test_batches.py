"""Packed rows must not see each other, and every batch must train EOS.

The loss is a poor witness (it moves by a few thousandths when rows leak), so logits and gradients
are compared with transformers in fp32, row by row.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from fasttune.encoding.batches import (
    NO_SECTION,
    Collator,
    alike,
    best_fit,
    count_learned,
    features,
    learned,
    left_pad,
    pack,
    pad,
    section_names,
    shared_beginning,
)
from fasttune.encoding.encode import IGNORED, encode
from fasttune.models.fast.attention import attend_by_row
from fasttune.models.head import token_losses
from fasttune.plugins.discovery import load_plugins

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
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    everything = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0]
        expected = torch.cat([alone(model, example) for example in examples])
        masked = model(**inputs, attention_mask=everything, use_cache=False).logits[0]
        cached = model(**inputs, use_cache=True).logits[0]
    assert (packed - expected).abs().max() < 1e-5
    # The controls, two set-ups that leak: the comparison does notice rows that see each other.
    assert (masked - expected).abs().max() > 1e-2
    assert (cached - expected).abs().max() > 1e-2


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
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) == len(examples)
    assert all(batch["labels"][0, start] == IGNORED for start in starts)


@pytest.mark.parametrize("collate", [pack, lambda rows: pad(rows, pad_id=50256)])
def test_every_row_trains_its_eos_although_padding_is_eos_too(collate, examples, phi2_tokenizer):
    labels = collate(examples)["labels"]
    assert (labels == phi2_tokenizer.eos_token_id).sum() == len(examples)
    trained = sum(label != IGNORED for example in examples for label in example["labels"])
    assert (labels != IGNORED).sum() == trained


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
    batch = left_pad([[1, 2, 3], [4]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 4, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_padding_stands_behind_what_all_prompts_share():
    batch = left_pad([[1, 2, 3, 4], [1, 2, 5]], shared=2)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 1, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]


# Rows that attend one by one, and their shared beginning


@pytest.fixture(params=["tiny_phi", "tiny_llama"])
def by_row(request):
    """A model in fp32 whose packed rows attend one by one."""
    folder = request.getfixturevalue(request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert attend_by_row(model)
    return model


def hidden_states(model, batch):
    return model.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=torch.empty(1, 1, 1, 1),
        row_layout=batch["row_layout"],
        use_cache=False,
    ).last_hidden_state


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
def test_rows_that_attend_one_by_one_have_the_logits_of_the_rows_alone(by_row, examples, share):
    shared = shared_beginning(examples) if share else 0
    batch = pack(examples, shared)
    with torch.no_grad():
        logits = by_row.lm_head(hidden_states(by_row, batch))[0]
        for example, (start, end) in zip(examples, batch["row_layout"].rows, strict=True):
            found = torch.cat([logits[:shared], logits[start:end]])
            assert (found - alone(by_row, example)).abs().max() < 1e-5


def test_without_a_layout_attention_is_that_of_transformers(by_row, examples):
    batch = pad(examples, pad_id=0)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = by_row(**inputs).logits
        by_row.config._attn_implementation = "sdpa"
        assert torch.equal(by_row(**inputs).logits, found)


def test_a_shared_beginning_changes_neither_loss_nor_gradients(by_row, examples):
    results = []
    for shared in (0, shared_beginning(examples)):
        batch = pack(examples, shared)
        found = learned(dict(batch))
        states = hidden_states(by_row, batch)
        loss = token_losses(by_row, states, found["places"], found["targets"]).sum()
        by_row.zero_grad()
        by_row.lm_head.requires_grad_(False)
        loss.backward()
        gradients = {
            name: p.grad.clone()
            for name, p in by_row.named_parameters()
            if p.grad is not None and "lm_head" not in name
        }
        results.append((loss.detach(), gradients, batch["input_ids"].shape[1]))
    (loss, gradients, tokens), (shared_loss, shared_gradients, fewer) = results
    assert fewer == tokens - 2 * shared_beginning(examples)
    assert float(shared_loss) == pytest.approx(float(loss), rel=1e-5)
    assert gradients.keys() == shared_gradients.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        difference = (shared_gradients[name] - gradient).abs().max()
        assert difference <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_the_shared_beginning_ends_before_anything_that_differs(examples):
    shared = shared_beginning(examples)
    assert shared > 20
    for example in examples:
        assert example["input_ids"][:shared] == examples[0]["input_ids"][:shared]
    same = {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8], "sections": [-1] * 4}
    # Both rows predict their first learned token from a token of their own.
    assert shared_beginning([same, same]) == 1


# Best fit


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(20, 100))
def test_best_fit_puts_every_row_into_one_pack_within_the_budget(lengths, budget):
    packs = best_fit(lengths, budget)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in members) for members in packs]
    for members, load in zip(packs, loads, strict=True):
        assert load <= budget or len(members) == 1
    # Rows that would fit into one pack are never spread over two.
    assert all(a + b > budget for a, b in combinations(loads, 2))


def test_best_fit_takes_the_tightest_pack():
    assert best_fit([5, 7, 3, 4, 6], 10) == [[1, 2], [3, 4], [0]]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(20, 100), st.integers(2, 3))
def test_packs_side_by_side_are_within_the_budget_and_alike(lengths, budget, multiple):
    packs = alike(lengths, budget, multiple)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(pack == sorted(pack) and pack for pack in packs)
    assert len(packs) % multiple == 0 or len(packs) == len(lengths)
    loads = [sum(lengths[index] for index in members) for members in packs]
    for members, load in zip(packs, loads, strict=True):
        assert load <= budget or len(members) == 1
        # Without its last and shortest row a pack was the shortest of all.
        assert load - min(lengths[index] for index in members) <= min(loads)


def test_packs_side_by_side_are_no_more_than_they_must_be():
    assert alike([5, 7, 3, 4, 6], 14, 2) == [[1, 2, 3], [0, 4]]
    assert alike([5, 7, 3, 4, 6], 13, 2) == [[1], [4], [0], [2, 3]]
    assert alike([5], 12, 2) == [[0]]
    assert alike([], 12, 2) == []


def test_a_step_has_the_same_rows_whatever_the_packs(examples):
    longest = max(len(e["input_ids"]) for e in examples)
    one = Collator(3, longest, packing=True, share=False, pad_id=0)(examples)
    several = Collator(1, longest, packing=True, share=False, pad_id=0)(examples)
    padded = Collator(2, longest, packing=False, share=False, pad_id=0)(examples)
    assert [len(one), len(several), len(padded)] == [1, 3, 2]
    for batches in (one, several, padded):
        targets = torch.cat([b["targets"] for b in batches])
        expected = [label for e in examples for label in e["labels"] if label != IGNORED]
        assert sorted(targets.tolist()) == sorted(expected)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_limit_is_halved_until_each_row_is_by_itself(packing, examples):
    rows = [*examples, *examples]
    collate = Collator(len(rows), 10_000, packing, share=False, pad_id=0)
    counts = [len(collate(rows))]
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert collate.halve(rows)
    assert collate.limit == (tokens if packing else len(rows)) // 2  # not of what there is room for
    counts.append(len(collate(rows)))
    while collate.halve(rows):
        counts.append(len(collate(rows)))
    assert counts[0] == 1 and counts[-1] == len(rows) and counts == sorted(set(counts))
    kept = collate.limit
    assert not collate.halve(rows) and collate.limit == kept
    targets = torch.cat([batch["targets"] for batch in collate(rows)])
    assert len(targets) == sum(count_learned(row) for row in rows)


def test_a_beginning_too_short_to_pay_is_not_shared(examples):
    tail = [{key: value[-60:] for key, value in e.items()} for e in examples]
    [batch] = Collator(3, 200, packing=True, share=True, pad_id=0)(tail)
    assert batch["row_layout"].shared == 0
    [batch] = Collator(3, 400, packing=True, share=True, pad_id=0)(examples)
    assert batch["row_layout"].shared == shared_beginning(examples)


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
def test_rows_in_bf16_are_as_near_to_fp32_as_those_of_transformers(
    tiny_llama, examples, share, monkeypatch
):
    from fasttune.models.fast import attention

    calls = []
    short = attention._short_attention
    monkeypatch.setattr(attention, "_short_attention", lambda *a: calls.append(1) or short(*a))
    exact, model = (
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval().to(dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    batch = pack(examples, shared_beginning(examples) if share else 0)
    with torch.no_grad():
        expected = torch.cat([alone(exact, example) for example in examples])
        reference = torch.cat([alone(model, example) for example in examples])
        assert attend_by_row(model)
        logits = model.lm_head(hidden_states(model, batch))[0]
        shared = batch["row_layout"].shared
        parts = [(logits[:shared], logits[a:b]) for a, b in batch["row_layout"].rows]
        found = torch.cat([torch.cat(part) for part in parts])
    assert len(calls) == model.config.num_hidden_layers * len(examples)
    assert (found - expected).norm() < 1.2 * (reference - expected).norm()
