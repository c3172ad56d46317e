"""Rows that nearly repeat another: by MinHash and locality-sensitive hashing (datasketch)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import chain

from fasttune.data.load import Loaded
from fasttune.errors import FasttuneError
from fasttune.formats.row import TURN_COLUMNS, Row

LIKENESS = 0.8
"""Jaccard similarity of two rows' sequences of SHINGLE characters, from which they are alike: what
datasets are commonly rid of (Lee et al., arXiv:2107.06499)."""
SHINGLE = 5
PERMUTATIONS = 128
EXAMPLES = 3
NEAR_ROWS = 50_000
"""Up to this many rows, near-duplicates are counted by default: it takes about 10 seconds."""


@dataclass(frozen=True)
class Near:
    """Rows that are like an earlier one without being the same, and a few examples: the numbers of
    both rows, behind their sources where there are several."""

    rows: int
    examples: list[tuple[str, str]]


def can_count() -> bool:
    """Whether datasketch is installed."""
    return importlib.util.find_spec("datasketch") is not None


def near_duplicates(loaded: Loaded) -> Near:
    """Count the rows that are like an earlier row, but for exact repeats. Pairs that are just alike
    enough may be missed; none is counted that is not."""
    if not can_count():
        raise FasttuneError(
            "near-duplicates are counted by datasketch, which is not installed",
            "--near",
            "pip install datasketch",
        )
    from datasketch import MinHash, MinHashLSH

    pairs: list[tuple[int, int]] = []
    index = MinHashLSH(threshold=LIKENESS, num_perm=PERMUTATIONS)
    firsts = {digest: place for place, digest in reversed([*enumerate(loaded.digests)])}
    places = sorted(firsts.values())  # of the rows that repeat none exactly
    texts = (_shingles(loaded.rows[place]) for place in places)
    for place, sketch in zip(places, MinHash.generator(texts, num_perm=PERMUTATIONS), strict=True):
        candidates = sorted(index.query(sketch))
        shingles = _shingles(loaded.rows[place]) if candidates else set()
        for other in candidates:
            theirs = _shingles(loaded.rows[other])
            if len(shingles & theirs) >= LIKENESS * len(shingles | theirs):
                pairs.append((place, other))
                break
        index.insert(place, sketch)
    rows = loaded.rows
    names = {at: f"{rows.origin(at)} {rows.number(at)}".strip() for at in chain(*pairs[:EXAMPLES])}
    return Near(len(pairs), [(names[place], names[other]) for place, other in pairs[:EXAMPLES]])


def _shingles(row: Row) -> set[bytes]:
    """The sequences of characters in what makes a row itself, without regard to case and blanks."""
    turns = [turn.get(column, "") for turn in row.turns for column in TURN_COLUMNS]
    text = " ".join(turns) if "instruction" in row else ""
    text = " ".join((text or " ".join(row.values())).lower().split())
    ends = range(max(1, len(text) - SHINGLE + 1))
    return {text[at : at + SHINGLE].encode() for at in ends}
