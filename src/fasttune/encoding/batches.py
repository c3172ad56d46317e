"""Encoded rows -> batches that keep rows apart.

Packed: the rows of a batch lie one behind the other in a single sequence without padding.
    transformers keeps them apart where `position_ids` restart at 0 and there is no attention mask;
    with an all-ones mask they would leak into each other while the loss hardly moved, so the tests
    compare logits. On a CPU each row attends by itself (models/fast/attention.py) and the tokens
    that all rows begin with are stored once.
"""

from __future__ import annotations

import os
from collections import UserList
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from fasttune.encoding.encode import IGNORED, Encoded

NO_SECTION = -1

MINIMAL_SAVING = 0.02
"""Share of a pack's tokens from which on storing a common beginning once is faster. Measured on the
demo model in bf16, packs of 4 rows: saving 1.5 % takes 1.004 times the time of a step, 3.0 % takes
0.971 and 11.2 % takes 0.940."""


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


class Step(UserList[dict[str, Any]]):
    """The rows of one optimiser step, or of a batch of an evaluation, each as `trainer_dataset`
    gives it. No list: libraries would look at each of its numbers for tensors."""


def trainer_dataset(rows: Sequence[Encoded], sections: Sequence[str]) -> Any:
    """The features of the rows as a `datasets.Dataset`, made when they are asked for, each with its
    `place` among the rows.

    TRL takes no other kind of data set; this one holds the places of the rows and nothing else.
    """
    from datasets import Dataset

    def look_up(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        found = [features(rows[place], sections) for place in batch["place"]]
        return {**{key: [each[key] for each in found] for key in found[0]}, **batch}

    return Dataset.from_dict({"place": range(len(rows))}).with_transform(look_up)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a pack lie.

    Attributes:
        shared: tokens at the beginning that belong to every row and are stored once.
        rows: (start, end) of each row's own tokens.
    """

    shared: int
    rows: tuple[tuple[int, int], ...]

    @property
    def saved(self) -> int:
        """Tokens that are not stored, and so not computed, again."""
        return self.shared * (len(self.rows) - 1)


def shared_beginning(rows: Sequence[dict[str, list[int]]]) -> int:
    """How many tokens at the beginning of all rows can be stored once: those in common, but the
    token before a row's first learned one stays its own, since what it predicts differs."""
    common = len(os.path.commonprefix([row["input_ids"] for row in rows]))  # works on lists too
    first = min(next(at for at, label in enumerate(r["labels"]) if label != IGNORED) for r in rows)
    return max(0, min(common, first - 1))


def count_learned(row: dict[str, Any]) -> int:
    """How many tokens of a row are learned; nothing predicts its first one."""
    return sum(label != IGNORED for label in row["labels"][1:])


def pack(rows: Sequence[dict[str, list[int]]], shared: int = 0) -> dict[str, Any]:
    """One sequence of all rows, the first `shared` tokens of each stored once.

    Returns:
        `input_ids`, `labels`, `sections` and `position_ids`, each of shape [1, tokens], where
        `position_ids` restart (after the shared tokens) with each row; and the `row_layout`.
    """
    flat = {
        key: torch.tensor(
            [rows[0][key][:shared] + [value for row in rows for value in row[key][shared:]]]
        )
        for key in ("input_ids", "labels", "sections")
    }
    ends = list(accumulate((len(row["input_ids"]) - shared for row in rows), initial=shared))
    # The model shifts labels: the last token of a row must not be asked for the first of the next.
    flat["labels"][0, ends[:-1]] = IGNORED
    positions = [*range(shared)]
    positions += [place for row in rows for place in range(shared, len(row["input_ids"]))]
    layout = Layout(shared, tuple(zip(ends, ends[1:], strict=False)))
    return {**flat, "position_ids": torch.tensor([positions]), "row_layout": layout}


def learned(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch of `pack` or `pad` as the trainer takes it: with the places of its learned tokens
    instead of `labels` and `sections`. Found here, on the CPU, they cost a GPU no waiting.

    Returns:
        the batch with `places`: flat indices into [rows, tokens] of the hidden states that predict
        a learned token; `targets`: those tokens; `owners`: their sections; each of shape [learned].
    """
    labels, sections = batch.pop("labels"), batch.pop("sections")
    row, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return {
        **batch,
        "places": row * labels.shape[1] + place,
        "targets": labels[row, place + 1],
        "owners": sections[row, place + 1],
    }


class Collator:
    """The rows of one optimiser step -> the batches it is computed in, see `learned`.

    Packed, the step's rows are distributed over as few packs as a budget of tokens allows,
    best-fit decreasing. Where several packs are computed side by side each has its part of the
    budget, and all are about as long. Which rows make up the step, and so the step itself, does not
    depend on it.

    Args:
        batch_size: rows in a batch; a pack may have more of them if they are short.
        max_length: the budget is `batch_size` rows of that many tokens.
        packing: whether to pack, or to pad.
        share: whether packs may store the rows' common beginning once.
        side_by_side: how many packs are computed at the same time.

    Attributes:
        limit: how large a batch may be: tokens of a pack, or rows of a padded batch.
    """

    def __init__(
        self,
        batch_size: int,
        max_length: int,
        packing: bool,
        share: bool,
        pad_id: int,
        side_by_side: int = 1,
    ) -> None:
        self.limit = batch_size * max_length // side_by_side if packing else batch_size
        self.side_by_side = side_by_side
        self.packing = packing
        self.share = share
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> list[dict[str, Any]]:
        make = self._pack if self.packing else self._pad
        return [learned(make([rows[at] for at in members])) for members in self._divide(rows)]

    def halve(self, rows: Sequence[dict[str, list[int]]]) -> bool:
        """Halve the limit, counted from the largest of the batches that these rows are laid into;
        False, and nothing else, where each row has a batch by itself already."""
        batches = self._divide(rows)
        if max(map(len, batches)) == 1:
            return False
        sizes = [
            sum(len(rows[at]["input_ids"]) for at in m) if self.packing else len(m)
            for m in batches
            if len(m) > 1
        ]
        self.limit = max(sizes) // 2
        return True

    def _divide(self, rows: Sequence[dict[str, list[int]]]) -> list[list[int]]:
        """The places of the rows of each batch."""
        if self.packing:
            lengths = [len(row["input_ids"]) for row in rows]
            if self.side_by_side == 1:
                return best_fit(lengths, self.limit)
            return alike(lengths, self.limit, self.side_by_side)
        starts = range(0, len(rows), self.limit)
        return [[*range(at, min(at + self.limit, len(rows)))] for at in starts]

    def _pad(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        return pad(rows, self.pad_id)

    def _pack(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        shared = shared_beginning(rows) if self.share and len(rows) > 1 else 0
        saved = shared * (len(rows) - 1)
        worth_it = saved >= MINIMAL_SAVING * sum(len(row["input_ids"]) for row in rows)
        return pack(rows, shared if worth_it else 0)


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing bin packing (Johnson 1973): indices of the rows per pack, in order.

    No pack is over the budget unless a single row is.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        fitting = [at for at, left in enumerate(room) if left >= lengths[index]]
        if fitting:
            chosen = min(fitting, key=room.__getitem__)
        else:
            chosen = len(packs)
            packs.append([])
            room.append(budget)
        packs[chosen].append(index)
        room[chosen] -= lengths[index]
    return [sorted(members) for members in packs]


def alike(lengths: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """Packs of about the same length, the longest row left into the shortest of them (Graham 1969):
    indices of the rows per pack, in order.

    As few as no pack is over the budget with, unless a single row is; a multiple of `multiple`, or
    one pack for each row.
    """
    packs: list[list[int]] = []
    for count in range(multiple, len(lengths) + multiple, multiple):
        packs = [[] for _ in range(min(count, len(lengths)))]
        sizes = [0] * len(packs)
        for index in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
            shortest = sizes.index(min(sizes))
            packs[shortest].append(index)
            sizes[shortest] += lengths[index]
        if all(size <= budget or len(p) == 1 for size, p in zip(sizes, packs, strict=True)):
            break
    return [sorted(members) for members in packs]


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


def left_pad(prompts: Sequence[list[int]], shared: int = 0) -> dict[str, torch.Tensor]:
    """Prompts for generation, filled up to the longest: `input_ids` and `attention_mask`, [prompts,
    longest].

    The padding has mask 0 and stands on the left, behind the first `shared` tokens. It repeats the
    prompt's own first token: a repetition penalty looks at ids and not at the mask, and must not
    find a token, such as EOS, that a prompt does not have.
    """
    longest = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        gap = longest - len(prompt)
        ids.append([*prompt[:shared], *prompt[:1] * gap, *prompt[shared:]])
        mask.append([1] * shared + [0] * gap + [1] * (len(prompt) - shared))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
