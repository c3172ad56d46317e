"""How rows are divided, picked and told apart: by their content, not by their order."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import TypeVar

from fasttune.errors import FasttuneError
from fasttune.formats.row import TURN_COLUMNS, Row

T = TypeVar("T")


def digest(row: Row, seed: int = 0) -> int:
    """The first 64 bits of SHA-256 over the seed and what makes a row itself: its instruction,
    input, reasoning and output, and the turns before them, or all of its columns where it has no
    instruction. So duplicates are equal, whatever their ids are."""
    *earlier, last = row.turns
    if "instruction" in last:
        before = [json.dumps([*map(dict, earlier)], ensure_ascii=False)] if earlier else []
        content = json.dumps([*(last.get(column, "") for column in TURN_COLUMNS), *before])
    else:
        content = json.dumps(dict(row), sort_keys=True)
    return int.from_bytes(hashlib.sha256(f"{seed}\n{content}".encode()).digest()[:8], "big")


def divide(digests: Iterable[int], eval_fraction: float) -> tuple[Sequence[int], Sequence[int]]:
    """Indices of the rows for training and for evaluation, each in order.

    A row's side is decided by its `digest` alone. So order does not matter, rows and columns added
    later move nothing, and duplicates stay together; the fraction is met on average.
    """
    if not 0 <= eval_fraction < 1:
        raise FasttuneError(
            "the eval fraction is not in [0, 1)", str(eval_fraction), "give for instance 0.05"
        )
    sides = (array("q"), array("q"))
    for index, of_row in enumerate(digests):
        sides[of_row < eval_fraction * 2**64].append(index)
    return sides


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances: a sorted file still shows all of its kinds."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def data_hash(rows: Iterable[Row]) -> str:
    """SHA-256 of the rows: their order counts, the order of their columns does not."""
    sha256 = hashlib.sha256()
    for row in rows:
        sha256.update(json.dumps(row.as_json(), sort_keys=True).encode() + b"\n")
    return sha256.hexdigest()
