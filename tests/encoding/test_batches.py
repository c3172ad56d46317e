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
    Collator,
    best_fit,
    equal_packs,
    left_pad,
    pack,
    pad,
    section_names,
    shared_beginning,
)
from fasttune.encoding.encode import IGNORED, Encoded, Span, encode
from fasttune.models.fast.attention import attention_obstacle, use_packed_attention
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
def encoded(small_tokenizer):
    template = load_plugins().template("reasoning")
    return [encode(template, row, small_tokenizer) for row in ROWS]


@pytest.fixture(scope="module")
def names(encoded):
    return section_names(encoded)


@pytest.fixture(params=["sdpa", "eager"])
def model(request, tiny_phi):
    return AutoModelForCausalLM.from_pretrained(
        tiny_phi, dtype=torch.float32, attn_implementation=request.param
    ).eval()


def alone(model, row):
    """Logits [tokens, vocabulary] of one row by itself."""
    return model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]


def learned_ids(row):
    return [label for label in row.labels if label != IGNORED]


def test_packed_logits_are_those_of_the_rows_alone(model, encoded, names):
    batch = pack(encoded, names)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    everything = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0]
        expected = torch.cat([alone(model, row) for row in encoded])
        masked = model(**inputs, attention_mask=everything, use_cache=False).logits[0]
        cached = model(**inputs, use_cache=True).logits[0]
    assert (packed - expected).abs().max() < 1e-5
    # The controls, two set-ups that leak: the comparison does notice rows that see each other.
    assert (masked - expected).abs().max() > 1e-2
    assert (cached - expected).abs().max() > 1e-2


def test_packed_gradients_are_the_sum_of_the_rows(model, encoded, names):
    def loss(logits, labels):
        return torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(labels)[1:], ignore_index=IGNORED, reduction="sum"
        )

    batch = pack(encoded, names)
    packed = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits[0]
    torch.nn.functional.cross_entropy(
        packed[batch["places"]], batch["targets"], reduction="sum"
    ).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in encoded:
        loss(alone(model, row), row.labels).backward()
    assert got
    for name, parameter in model.named_parameters():
        if name in got:
            scale = parameter.grad.abs().max()
            assert (got[name] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-6, name


def test_no_packed_row_is_asked_for_the_first_token_of_the_next(encoded, names):
    batch = pack(encoded, names)
    starts = (batch["position_ids"][0] == 0).nonzero().flatten()
    assert len(starts) == len(encoded)
    assert not torch.isin(batch["places"] + 1, starts).any()


@pytest.mark.parametrize("collate", [pack, lambda rows, names: pad(rows, names, pad_id=0)])
def test_every_row_trains_its_eos_although_padding_is_eos_too(
    collate, encoded, names, small_tokenizer
):
    targets = collate(encoded, names)["targets"]
    assert (targets == small_tokenizer.eos_token_id).sum() == len(encoded)
    assert len(targets) == sum(label != IGNORED for row in encoded for label in row.labels)


@pytest.mark.parametrize("shared", [0, 20])
def test_the_learned_tokens_are_those_of_the_labels(shared, encoded, names):
    """As a search through labels and sections laid beside the ids finds them."""
    assert names == ["reasoning", "response", "eos"]
    padded = (pad(encoded, names, 0), max(map(len, encoded)), 0)
    packed = pack(encoded, names, shared)
    for batch, width, begun in [padded, (packed, packed["input_ids"].shape[1], shared)]:
        labels, owners = [], []
        for row in encoded:
            owner = [-1] * len(row)
            for span in row.spans:
                if span.train:
                    tokens = span.end - span.start
                    owner[span.start : span.end] = [names.index(span.name)] * tokens
            gap = width - len(row) if batch is padded[0] else 0
            first = begun if labels else 0
            labels += row.labels[first:] + [IGNORED] * gap
            owners += owner[first:] + [-1] * gap
        learned = [place for place, label in enumerate(labels) if label != IGNORED]
        assert len(labels) == batch["input_ids"].numel()
        assert batch["places"].tolist() == [place - 1 for place in learned]
        assert batch["targets"].tolist() == [labels[place] for place in learned]
        assert batch["owners"].tolist() == [owners[place] for place in learned]
        assert batch["targets"].equal(batch["input_ids"].view(-1)[batch["places"] + 1])


def test_padding_masks_itself(encoded, names):
    batch = pad(encoded, names, pad_id=7)
    for index, row in enumerate(encoded):
        gap = batch["input_ids"].shape[1] - len(row)
        assert batch["input_ids"][index].tolist() == row.input_ids + [7] * gap
        assert batch["attention_mask"][index].tolist() == [1] * len(row) + [0] * gap


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
    assert not attention_obstacle(model)
    use_packed_attention(model)
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
def test_rows_that_attend_one_by_one_have_the_logits_of_the_rows_alone(
    by_row, encoded, names, share
):
    shared = shared_beginning(encoded) if share else 0
    batch = pack(encoded, names, shared)
    with torch.no_grad():
        logits = by_row.lm_head(hidden_states(by_row, batch))[0]
        for row, (start, end) in zip(encoded, batch["row_layout"].rows, strict=True):
            found = torch.cat([logits[:shared], logits[start:end]])
            assert (found - alone(by_row, row)).abs().max() < 1e-5


def test_without_a_layout_attention_is_that_of_transformers(by_row, encoded, names):
    batch = pad(encoded, names, pad_id=0)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = by_row(**inputs).logits
        by_row.config._attn_implementation = "sdpa"
        assert torch.equal(by_row(**inputs).logits, found)


def test_a_shared_beginning_changes_neither_loss_nor_gradients(by_row, encoded, names):
    results = []
    for shared in (0, shared_beginning(encoded)):
        batch = pack(encoded, names, shared)
        states = hidden_states(by_row, batch)
        loss = token_losses(by_row, states, batch["places"], batch["targets"]).sum()
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
    assert fewer == tokens - 2 * shared_beginning(encoded)
    assert float(shared_loss) == pytest.approx(float(loss), rel=1e-5)
    assert gradients.keys() == shared_gradients.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        difference = (shared_gradients[name] - gradient).abs().max()
        assert difference <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_the_shared_beginning_ends_before_anything_that_differs(encoded):
    shared = shared_beginning(encoded)
    assert shared > 20
    for row in encoded:
        assert row.input_ids[:shared] == encoded[0].input_ids[:shared]
    same = Encoded([5, 6, 7, 8], [Span("a", 0, 2, False), Span("b", 2, 4, True)], 2)
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
    packs = equal_packs(lengths, budget, multiple)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(pack == sorted(pack) and pack for pack in packs)
    assert len(packs) % multiple == 0 or len(packs) == len(lengths)
    loads = [sum(lengths[index] for index in members) for members in packs]
    for members, load in zip(packs, loads, strict=True):
        assert load <= budget or len(members) == 1
        # Without its last and shortest row a pack was the shortest of all.
        assert load - min(lengths[index] for index in members) <= min(loads)


def test_packs_side_by_side_are_no_more_than_they_must_be():
    assert equal_packs([5, 7, 3, 4, 6], 14, 2) == [[1, 2, 3], [0, 4]]
    assert equal_packs([5, 7, 3, 4, 6], 13, 2) == [[1], [4], [0], [2, 3]]
    assert equal_packs([5], 12, 2) == [[0]]
    assert equal_packs([], 12, 2) == []


def test_a_step_has_the_same_rows_whatever_the_packs(encoded, names):
    longest = max(map(len, encoded))
    one = Collator(3, longest, packing=True, share=False, pad_id=0, sections=names)(encoded)
    several = Collator(1, longest, packing=True, share=False, pad_id=0, sections=names)(encoded)
    padded = Collator(2, longest, packing=False, share=False, pad_id=0, sections=names)(encoded)
    assert [len(one), len(several), len(padded)] == [1, 3, 2]
    for batches in (one, several, padded):
        targets = torch.cat([b["targets"] for b in batches])
        assert sorted(targets.tolist()) == sorted(i for row in encoded for i in learned_ids(row))


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_limit_is_halved_until_each_row_is_by_itself(packing, encoded, names):
    rows = [*encoded, *encoded]
    collate = Collator(len(rows), 10_000, packing, share=False, pad_id=0, sections=names)
    counts = [len(collate(rows))]
    tokens = sum(map(len, rows))
    assert collate.halve(rows)
    assert collate.limit == (tokens if packing else len(rows)) // 2  # not of what there is room for
    counts.append(len(collate(rows)))
    while collate.halve(rows):
        counts.append(len(collate(rows)))
    assert counts[0] == 1 and counts[-1] == len(rows) and counts == sorted(set(counts))
    kept = collate.limit
    assert not collate.halve(rows) and collate.limit == kept
    targets = torch.cat([batch["targets"] for batch in collate(rows)])
    assert len(targets) == sum(row.trained for row in rows)


def test_a_beginning_too_short_to_pay_is_not_shared(encoded, names):
    spans = [Span("given", 0, 50, False), Span("response", 50, 60, True)]
    tail = [Encoded(row.input_ids[-60:], spans, 50) for row in encoded]
    [batch] = Collator(3, 200, packing=True, share=True, pad_id=0, sections=names)(tail)
    assert batch["row_layout"].shared == 0
    [batch] = Collator(3, 400, packing=True, share=True, pad_id=0, sections=names)(encoded)
    assert batch["row_layout"].shared == shared_beginning(encoded)


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
def test_rows_in_bf16_are_as_near_to_fp32_as_those_of_transformers(
    tiny_llama, encoded, names, share, monkeypatch
):
    from fasttune.models.fast import attention

    calls = []
    short = attention._short_attention
    monkeypatch.setattr(attention, "_short_attention", lambda *a: calls.append(1) or short(*a))
    exact, model = (
        AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval().to(dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    batch = pack(encoded, names, shared_beginning(encoded) if share else 0)
    with torch.no_grad():
        expected = torch.cat([alone(exact, row) for row in encoded])
        reference = torch.cat([alone(model, row) for row in encoded])
        assert not attention_obstacle(model)
        use_packed_attention(model)
        logits = model.lm_head(hidden_states(model, batch))[0]
        shared = batch["row_layout"].shared
        parts = [(logits[:shared], logits[a:b]) for a, b in batch["row_layout"].rows]
        found = torch.cat([torch.cat(part) for part in parts])
    assert len(calls) == model.config.num_hidden_layers * len(encoded)
    assert (found - expected).norm() < 1.2 * (reference - expected).norm()
