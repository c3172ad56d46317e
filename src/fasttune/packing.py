"""Encoded rows -> batches that keep rows apart.

Packed: the rows of a batch lie one behind the other in a single sequence without padding.
    transformers keeps them apart where `position_ids` restart at 0 and there is no attention mask;
    with an all-ones mask they would leak into each other while the loss hardly moved, so the tests
    compare logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fasttune.encode import IGNORED, Encoded

NO_SECTION = -1


def section_names(rows: Sequence[Encoded]) -> list[str]:
    """The names of the learned spans in order of appearance; EOS is one of them."""
    return list(dict.fromkeys(span.name for row in rows for span in row.spans if span.train))


def features(row: Encoded, sections: Sequence[str]) -> dict[str, list[int]]:
    """A row as three lists of one length: `input_ids`, `labels` and `sections`, where `sections`
    holds each learned token's index into the section names and NO_SECTION elsewhere."""
    owner = [NO_SECTION] * len(row)
    for span in row.spans:
        if span.train:
            owner[span.start : span.end] = [sections.index(span.name)] * (span.end - span.start)
    return {"input_ids": row.input_ids, "labels": row.labels, "sections": owner}


def pack(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """One sequence of all rows: four tensors of shape [1, tokens]; `position_ids` restart with
    each row."""
    flat = {
        key: torch.tensor([[value for row in rows for value in row[key]]])
        for key in ("input_ids", "labels", "sections")
    }
    # The model shifts labels: the last token of a row must not be asked for the first of the next.
    starts = [0]
    for row in rows[:-1]:
        starts.append(starts[-1] + len(row["input_ids"]))
    flat["labels"][0, starts] = IGNORED
    positions = [position for row in rows for position in range(len(row["input_ids"]))]
    return {**flat, "position_ids": torch.tensor([positions])}


def pad(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded rows: four tensors of shape [rows, longest]; padding has label IGNORED and mask
    0."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad_id, "labels": IGNORED, "sections": NO_SECTION}
    batch = {
        key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows])
        for key, value in fill.items()
    }
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {**batch, "attention_mask": torch.tensor(mask)}


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    """Prompts for generation, padded on the left: `input_ids` and `attention_mask`, [prompts,
    longest]."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[pad_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
