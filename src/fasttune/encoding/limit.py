"""The maximum length of a row, and what becomes of rows beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from fasttune.encoding.encode import EOS_SPAN, Encoded
from fasttune.encoding.spans import Span
from fasttune.errors import FasttuneError

Overlong = Literal["drop", "truncate", "error"]


def limit_lengths(
    rows: Iterable[tuple[int, Encoded]],
    max_length: int,
    overlong: Overlong,
    counts: Counter[str],
) -> Iterator[tuple[int, Encoded]]:
    """The rows of at most `max_length` tokens, and what the policy leaves of the others.

    "drop" leaves them out; "truncate" cuts the end of the completion but keeps EOS, and drops a row
    whose prompt alone leaves no room for a learned token; "error" raises. EOS is never removed.

    Args:
        rows: (place, row), from 0.
        counts: "dropped" and "truncated" rows are counted here.

    Raises:
        FasttuneError: a row is too long under "error".
    """
    for place, row in rows:
        if len(row) <= max_length:
            yield place, row
            continue
        if overlong == "error":
            raise FasttuneError(
                f"a row has {len(row)} tokens, more than {max_length}",
                f"row {place + 1}",
                "raise model.max_length, or set data.overlong to drop or truncate",
            )
        short = _truncated(row, max_length) if overlong == "truncate" else None
        counts["dropped" if short is None else "truncated"] += 1
        if short is not None:
            yield place, short


def _truncated(row: Encoded, max_length: int) -> Encoded | None:
    keep = max_length - 1  # one place is for EOS
    spans = [
        Span(s.name, s.start, min(s.end, keep), s.train) for s in row.spans[:-1] if s.start < keep
    ]
    if not any(span.train for span in spans):
        return None
    spans.append(Span(EOS_SPAN, keep, keep + 1, train=True))
    return Encoded([*row.input_ids[:keep], row.input_ids[-1]], spans, row.prompt_length)
