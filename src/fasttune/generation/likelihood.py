"""Answers with the likelihood of their references: what prompt formats are compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from fasttune.encoding.batches import features, learned, pad, section_names
from fasttune.encoding.encode import Encoded, encode_many, response_tokens
from fasttune.generation.generator import Generator, Sampling
from fasttune.models.head import causal_lm, decoder, token_losses
from fasttune.plugins.metric import Answer, Likelihood
from fasttune.plugins.template import Row, with_system


def evaluate(
    generator: Generator,
    rows: Sequence[Row],
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answer rows greedily and take the likelihood of their references.

    Args:
        report: called with the number of answered rows after every batch.

    Returns:
        One answer per row, in order.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answers = list(generator.answers(rows, sampling, batch_size, report))
    return with_likelihoods(generator, answers, batch_size)


def with_likelihoods(
    generator: Generator, answers: Sequence[Answer], batch_size: int
) -> list[Answer]:
    """The answers with the likelihoods of their rows' references."""
    template = generator.template
    _, response = template.response
    before = {section: column for section, column in template.targets.items() if column != response}
    rows = [with_system(answer.row, generator.system) for answer in answers]
    own = [
        {**row, **{column: answer.sections.get(section, "") for section, column in before.items()}}
        for row, answer in zip(rows, answers, strict=True)
    ]
    after_reference = list(_costs(generator, rows, batch_size))
    after_own = list(_costs(generator, own, batch_size)) if before else after_reference
    whole = [all(row.get(column, "").strip() for column in before.values()) for row in rows]
    return [
        replace(
            answer,
            likelihood=Likelihood(
                bits=after_own[at][0],
                bits_reference=after_reference[at][0] if whole[at] else None,
                bytes=len(answer.row[response].encode()),
                eos=after_reference[at][1] if whole[at] else None,
            ),
        )
        for at, answer in enumerate(answers)
    ]


def _costs(
    generator: Generator, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[float, float]]:
    """For each row the bits of the response's text, and the probability of EOS after it."""
    template, tokenizer = generator.template, generator.tokenizer
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        encoded = list(encode_many(map(template.segments, batch), tokenizer))
        for row, ids, losses in zip(batch, encoded, _losses(generator, encoded), strict=True):
            places = response_tokens(template, row, tokenizer)
            bits = sum(losses[at] for at in places) / math.log(2)
            yield bits, math.exp(-losses[len(ids) - 1])


@torch.inference_mode()
def _losses(generator: Generator, rows: Sequence[Encoded]) -> list[list[float]]:
    """For each row the cross entropy in nats of every token; 0 where none is learned."""
    model = causal_lm(generator.model)
    device = next(model.parameters()).device
    names = section_names(rows)
    batch = pad([features(row, names) for row in rows], generator.tokenizer.pad_token_id)
    shape = batch["input_ids"].shape
    batch = learned(batch)
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    with generator.choices.autocasting(device.type):
        hidden = decoder(model)(**inputs, use_cache=False).last_hidden_state
    table = torch.zeros(shape, dtype=torch.float64)
    losses = token_losses(model, hidden, batch["places"], batch["targets"])
    table.view(-1)[batch["places"] + 1] = losses.double().cpu()
    return table.tolist()
