"""Answers with the likelihood of their references, by which prompt formats are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from fasttune.encoding.batches import pad, section_names, worth_sharing
from fasttune.encoding.encode import Encoded, batches, encode_many, response_tokens
from fasttune.formats.row import Row
from fasttune.generation.decoding import plain_cache
from fasttune.generation.generator import Generator, Sampling
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.plugins.metric import Answer, Likelihood


def answer_and_measure(
    generator: Generator,
    rows: Sequence[Mapping[str, str]],
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answer rows greedily, and compute the likelihood of their references; `report` gets the
    number of answered rows after every batch."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answers = list(generator.answers(rows, sampling, batch_size, report))
    return with_likelihoods(generator, answers, batch_size)


def with_likelihoods(
    generator: Generator, answers: Sequence[Answer], batch_size: int
) -> list[Answer]:
    """Add the likelihoods of their rows' references to answers."""
    _, response = generator.template.response
    targets = generator.template.targets.items()
    before = {section: column for section, column in targets if column != response}
    rows = [answer.row for answer in answers]
    own = [
        answer.row.with_turn({column: answer.sections.get(s, "") for s, column in before.items()})
        for answer in answers
    ]
    after_reference = _costs(generator, rows, batch_size)
    after_own = _costs(generator, own, batch_size) if before else after_reference
    measured = []
    for answer, (bits, _), (reference, eos) in zip(
        answers, after_own, after_reference, strict=True
    ):
        size = len(answer.row[response].encode())
        likelihood = Likelihood(bits, reference, size, eos)
        if not all(answer.row.get(column, "").strip() for column in before.values()):
            likelihood = Likelihood(bits, None, size, None)
        measured.append(replace(answer, likelihood=likelihood))
    return measured


def _costs(generator: Generator, rows: Sequence[Row], batch_size: int) -> list[tuple[float, float]]:
    """For each row the bits of the response's text, and the probability of EOS after it. Rows of
    like length are batched, and what all rows begin with goes through the model once."""
    template, tokenizer = generator.template, generator.tokenizer
    encoded = list(encode_many(template, rows, tokenizer))
    beginning = _beginning(generator, encoded)
    order = sorted(range(len(rows)), key=lambda at: len(encoded[at]), reverse=True)
    costs: dict[int, tuple[float, float]] = {}
    for batch in batches(order, batch_size):
        losses = _losses(generator, [encoded[at] for at in batch], beginning)
        for at, own in zip(batch, losses, strict=True):
            places = response_tokens(template, rows[at], tokenizer)
            bits = sum(own[place] for place in places) / math.log(2)
            costs[at] = bits, math.exp(-own[len(encoded[at]) - 1])
    return [costs[at] for at in range(len(rows))]


@torch.inference_mode()
def _beginning(generator: Generator, rows: Sequence[Encoded]) -> DynamicCache | None:
    """Keys and values of the tokens that all rows begin with; None where that saves nothing, or
    where the model's cache is not a plain one."""
    cache = plain_cache(generator.model)
    shared = worth_sharing(rows)
    if cache is None or not shared:
        return None
    device = next(generator.model.parameters()).device
    with generator.choices.autocasting(device.type):
        decoder(generator.model)(
            input_ids=torch.tensor([rows[0].input_ids[:shared]], device=device),
            past_key_values=cache,
            use_cache=True,
        )
    return cache


@torch.inference_mode()
def _losses(
    generator: Generator, rows: Sequence[Encoded], beginning: DynamicCache | None
) -> list[list[float]]:
    """For each row the cross entropy in nats of every token; 0 where none is learned."""
    model = causal_lm(generator.model)
    device = next(model.parameters()).device
    begun = beginning.get_seq_length() if beginning is not None else 0
    batch = pad(rows, section_names(rows), generator.tokenizer.pad_token_id)
    mask, places = batch["attention_mask"].to(device), batch["places"]
    ids = batch["input_ids"][:, begun:].to(device)
    reading: dict[str, Any] = {"use_cache": False}
    if beginning is not None:
        cache = deepcopy(beginning)
        cache.batch_repeat_interleave(len(rows))
        positions = torch.arange(begun, mask.shape[1], device=device).expand_as(ids)
        reading = {"past_key_values": cache, "position_ids": positions, "use_cache": True}
    with generator.choices.autocasting(device.type):
        hidden = decoder(model)(input_ids=ids, attention_mask=mask, **reading).last_hidden_state
    own = places - begun * (places // mask.shape[1] + 1)  # without the tokens of the beginning
    losses = token_losses(model, hidden, own, batch["targets"])
    table = torch.zeros(mask.shape, dtype=torch.float64)
    table.view(-1)[places + 1] = losses.double().cpu()
    nats: list[list[float]] = table.tolist()
    return nats
