"""The maximum length of a row, and what becomes of rows beyond it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fasttune.encoding.encode import EOS_SPAN, IGNORED, Encoded
from fasttune.encoding.spans import Span
from fasttune.errors import FasttuneError

Overlong = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Fitted:
    """Rows that fit into the maximum length, and what became of the others.

    Attributes:
        rows: (index into the input, encoded row), in order.
        dropped: indices of the rows left out.
        truncated: indices of the rows that were shortened.
    """

    rows: list[tuple[int, Encoded]]
    dropped: list[int]
    truncated: list[int]


def fit(rows: Iterable[Encoded], max_length: int, overlong: Overlong, first: int = 0) -> Fitted:
    """Apply the policy for rows of more than `max_length` tokens.

    "drop" leaves them out; "truncate" cuts the end of the completion but keeps EOS, and drops a row
    whose prompt alone leaves no room for a learned token; "error" raises. EOS is never removed.
    The indices count from `first`.

    Raises:
        FasttuneError: a row is too long under "error".
    """
    kept: list[tuple[int, Encoded]] = []
    dropped: list[int] = []
    truncated: list[int] = []
    for index, row in enumerate(rows, start=first):
        if len(row) <= max_length:
            kept.append((index, row))
            continue
        if overlong == "error":
            raise FasttuneError(
                f"a row has {len(row)} tokens, more than {max_length}",
                f"row {index + 1}",
                "raise model.max_length, or set data.overlong to drop or truncate",
            )
        short = _truncate(row, max_length) if overlong == "truncate" else None
        if short is None:
            dropped.append(index)
        else:
            truncated.append(index)
            kept.append((index, short))
    return Fitted(kept, dropped, truncated)


def _truncate(row: Encoded, max_length: int) -> Encoded | None:
    keep = max_length - 1  # one place is for EOS
    if all(label == IGNORED for label in row.labels[:keep]):
        return None
    spans = [
        Span(s.name, s.start, min(s.end, keep), s.train) for s in row.spans[:-1] if s.start < keep
    ]
    spans.append(Span(EOS_SPAN, keep, keep + 1, train=True))
    return Encoded(
        [*row.input_ids[:keep], row.input_ids[-1]],
        [*row.labels[:keep], row.labels[-1]],
        spans,
        row.prompt_length,
    )
