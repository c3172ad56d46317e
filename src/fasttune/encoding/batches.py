"""Encoded rows -> batches that keep rows apart.

A packed batch is one sequence of rows without padding. transformers keeps the rows apart if
`position_ids` restart at 0 and there is no attention mask. With an all-ones mask rows would see
each other and the loss would hardly change, so the tests compare logits. On a CPU each row attends
by itself (models/fast/attention.py), and tokens that all rows begin with are stored once.

Where the learned tokens are is computed here, on the CPU, so that a GPU does not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch

from fasttune.encoding.encode import Encoded, batches

MINIMAL_SAVING = 0.02
"""Minimum share of a pack's tokens that sharing a common beginning must save. Measured on the demo
model in bf16 with packs of 4 rows: saving 1.5 % takes 1.004 times the time of a step, 3.0 % takes
0.971 and 11.2 % takes 0.940."""


def section_names(rows: Sequence[Encoded]) -> list[str]:
    """The names of the learned spans in order of appearance; EOS is one of them."""
    return list(dict.fromkeys(span.name for row in rows for span in row.spans if span.train))


def trainer_dataset(rows: Sequence[Encoded]) -> Any:
    """A `datasets.Dataset`, as TRL requires, that holds only the place of each row."""
    from datasets import Dataset

    return Dataset.from_dict({"place": range(len(rows))})


@dataclass(frozen=True)
class Layout:
    """Where the rows of a pack lie: the number of tokens at the beginning that belong to every row
    and are stored once, and (start, end) of each row's own tokens."""

    shared: int
    rows: tuple[tuple[int, int], ...]

    @property
    def saved(self) -> int:
        """Tokens that sharing saves from being stored and computed again."""
        return self.shared * (len(self.rows) - 1)


def shared_beginning(rows: Sequence[Encoded]) -> int:
    """How many tokens at the beginning of all rows can be stored once: never the token before a
    row's first learned one, because rows predict different tokens from it."""
    common = len(os.path.commonprefix([row.input_ids for row in rows]))  # works on lists too
    first = min(span.start for row in rows for span in row.spans if span.train)
    return max(0, min(common, first - 1))


def worth_sharing(rows: Sequence[Encoded]) -> int:
    """`shared_beginning`, or 0 if sharing it saves less than MINIMAL_SAVING of the tokens."""
    shared = shared_beginning(rows)
    saved = shared * (len(rows) - 1)
    return shared if saved and saved >= MINIMAL_SAVING * sum(map(len, rows)) else 0


def _learned(
    rows: Sequence[Encoded], sections: Sequence[str], starts: Iterable[int]
) -> dict[str, torch.Tensor]:
    """The learned tokens of a batch, each of shape [learned]: `places`, flat indices into [rows,
    tokens] of the hidden states that predict them; `targets`, their ids; `owners`, the indices of
    their sections.

    Args:
        starts: the flat index that each row's first token has, or would have without sharing.
    """
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, start in zip(rows, starts, strict=True):
        for span in row.spans:
            if span.train:
                places += range(start + span.start - 1, start + span.end - 1)
                targets += row.input_ids[span.start : span.end]
                owners += [sections.index(span.name)] * (span.end - span.start)
    learned = {"places": places, "targets": targets, "owners": owners}
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in learned.items()}


def pack(rows: Sequence[Encoded], sections: Sequence[str], shared: int = 0) -> dict[str, Any]:
    """Put all rows into one sequence and store their first `shared` tokens once.

    Returns:
        `input_ids` and `position_ids` of shape [1, tokens], where positions restart after the
        shared tokens with each row; the `row_layout`; and what `_learned` returns.
    """
    ends = list(accumulate((len(row) - shared for row in rows), initial=shared))
    ids = rows[0].input_ids[:shared]
    positions = [*range(shared)]
    for row in rows:
        ids += row.input_ids[shared:]
        positions += range(shared, len(row))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "row_layout": Layout(shared, tuple(pairwise(ends))),
        **_learned(rows, sections, (end - shared for end in ends[:-1])),
    }


@dataclass(eq=False)
class Collator:
    """Divides the rows of one optimiser step into batches that fit into memory.

    With packing, it distributes the rows over as few packs as a token budget allows (best-fit
    decreasing). If several packs are computed side by side, each gets a part of the budget and all
    are about equally long. The rows of a step do not depend on how they are divided.

    Attributes:
        batch_size: rows in a batch; a pack may have more if they are short.
        max_length: a pack's budget is `batch_size` rows of this many tokens.
        share: whether packs may store the rows' common beginning once.
        sections: the names of the learned spans; a token's owner is an index into them.
        side_by_side: how many packs are computed at the same time.
        limit: the largest batch: tokens in a pack, or rows in a padded batch.
    """

    batch_size: int
    max_length: int
    packing: bool
    share: bool
    pad_id: int
    sections: Sequence[str]
    side_by_side: int = 1
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        budget = self.batch_size * self.max_length // self.side_by_side
        self.limit = budget if self.packing else self.batch_size

    def __call__(self, rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        """The batches, see `pack` and `pad`."""
        members = [[rows[index] for index in batch] for batch in self._divide(rows)]
        if not self.packing:
            return [pad(batch, self.sections, self.pad_id) for batch in members]
        return [
            pack(batch, self.sections, worth_sharing(batch) if self.share else 0)
            for batch in members
        ]

    def halve(self, rows: Sequence[Encoded]) -> bool:
        """Halve the limit, starting from the largest batch that these rows need; change nothing and
        return False if each row has a batch to itself."""
        large = [members for members in self._divide(rows) if len(members) > 1]
        sizes = [sum(len(rows[i]) for i in m) if self.packing else len(m) for m in large]
        self.limit = max(sizes) // 2 if sizes else self.limit
        return bool(sizes)

    def _divide(self, rows: Sequence[Encoded]) -> list[list[int]]:
        """The indices of the rows in each batch."""
        lengths = [len(row) for row in rows]
        if not self.packing:
            return [*batches(range(len(rows)), self.limit)]
        if self.side_by_side == 1:
            return best_fit(lengths, self.limit)
        return equal_packs(lengths, self.limit, self.side_by_side)


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing bin packing (Johnson 1973), as the ascending indices of each pack's rows.

    A pack exceeds the budget only if its single row does.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [number for number, left in enumerate(room) if left >= lengths[index]]
        if fitting:
            chosen = min(fitting, key=room.__getitem__)
        else:
            chosen = len(packs)
            packs.append([])
            room.append(budget)
        packs[chosen].append(index)
        room[chosen] -= lengths[index]
    return [sorted(members) for members in packs]


def equal_packs(lengths: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """Packs of about equal length: the longest row left goes into the shortest pack (Graham 1969).

    The number of packs is a multiple of `multiple`, or one per row, and as small as the budget
    allows; see `best_fit`.
    """
    packs: list[list[int]] = []
    for count in range(multiple, len(lengths) + multiple, multiple):
        packs = [[] for _ in range(min(count, len(lengths)))]
        sizes = [0] * len(packs)
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            shortest = sizes.index(min(sizes))
            packs[shortest].append(index)
            sizes[shortest] += lengths[index]
        if all(size <= budget or len(p) == 1 for size, p in zip(sizes, packs, strict=True)):
            break
    return [sorted(members) for members in packs]


def pad(rows: Sequence[Encoded], sections: Sequence[str], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right: `input_ids` and `attention_mask` of shape [rows, longest], and what
    `_learned` returns."""
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    ids = [row.input_ids + [pad_id] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * (longest - gap) + [0] * gap for gap in gaps]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        **_learned(rows, sections, range(0, longest * len(rows), longest)),
    }


def left_pad(prompts: Sequence[list[int]], shared: int = 0) -> dict[str, torch.Tensor]:
    """Pad prompts for generation to the length of the longest.

    The padding has mask 0 and stands on the left, after the first `shared` tokens. It repeats the
    prompt's own first token: a repetition penalty ignores the mask, so it must not find a token,
    such as EOS, that the prompt does not contain. Shapes are [prompts, longest].
    """
    longest = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        gap = longest - len(prompt)
        ids.append([*prompt[:shared], *prompt[:1] * gap, *prompt[shared:]])
        mask.append([1] * shared + [0] * gap + [1] * (len(prompt) - shared))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
