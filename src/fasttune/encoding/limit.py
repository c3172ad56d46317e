"""The maximum length of a row, and what becomes of rows beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fasttune.encoding.encode import EOS_SPAN, Encoded
from fasttune.encoding.spans import Span
from fasttune.errors import FasttuneError


def limit_lengths(
    rows: Iterable[tuple[int, Encoded]],
    max_length: int,
    overlong: str,
    counts: Counter[str],
) -> Iterator[tuple[int, Encoded]]:
    """The rows of at most `max_length` tokens, and what the policy leaves of the others.

    "drop" leaves them out; "truncate" leaves out the last turns of a conversation, or else cuts the
    end of the only completion but keeps EOS, and drops a row whose prompt alone leaves no room for
    a learned token; "error" raises. No turn loses its EOS.

    Args:
        rows: (place, row), from 0.
        overlong: "drop", "truncate" or "error".
        counts: "dropped" and "truncated" rows are counted here.
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
    ends = [at for at, span in enumerate(row.spans) if span.name == EOS_SPAN]
    whole = [at for at in ends if row.spans[at].end <= max_length]
    if whole:
        spans = row.spans[: whole[-1] + 1]
        return Encoded(row.input_ids[: spans[-1].end], spans, _prompt_length(spans))
    keep = max_length - 1  # one place is for EOS
    first = row.spans[: ends[0]]
    spans = [Span(s.name, s.start, min(s.end, keep), s.train) for s in first if s.start < keep]
    if not any(span.train for span in spans):
        return None
    spans.append(Span(EOS_SPAN, keep, keep + 1, train=True))
    ids = [*row.input_ids[:keep], row.input_ids[-1]]
    return Encoded(ids, spans, _prompt_length(spans) if ends[1:] else row.prompt_length)


def _prompt_length(spans: Sequence[Span]) -> int:
    """Where the last turn's completion begins."""
    start = max((s.end for s in spans[:-1] if s.name == EOS_SPAN), default=0)
    return next(span.start for span in spans if span.start >= start and span.train)
