"""Segments and a tokenizer -> input ids, labels and spans.

The prompt and the completion of a turn are tokenized apart, each as one string: a token must end
where generation begins. Across any other border BPE may merge, such as the `>` of `<|response|>`
and a quote in GPT-2's vocabulary. Each turn of a conversation ends with EOS.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, islice
from typing import Any, TypeVar

from fasttune.encoding.spans import Span as Span
from fasttune.encoding.spans import Tokens, lay, tokenize
from fasttune.encoding.spans import eos_id as eos_id
from fasttune.errors import FasttuneError
from fasttune.formats.parts import Segment
from fasttune.formats.row import Row
from fasttune.formats.template import Template, at_the_answer, split_turns

IGNORED = -100
"""The label that torch's cross entropy skips."""

EOS_SPAN = "eos"
BATCH = 500
"""Rows tokenized in one call."""

Parts = tuple[list[Segment], list[Segment]]
"""The prompt and the completion of a turn."""
T = TypeVar("T")


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it.

    Attributes:
        input_ids: token ids, EOS at the end of each turn.
        spans: cover all tokens in order, without gaps; the last is EOS.
        prompt_length: number of tokens before generation of the last turn begins.
    """

    input_ids: list[int]
    spans: list[Span]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def trained(self) -> int:
        """How many tokens are learned."""
        return sum(span.end - span.start for span in self.spans if span.train)

    @cached_property
    def labels(self) -> list[int]:
        """The ids of the learned spans, IGNORED elsewhere. The label of position t is the token at
        t: the model shifts them itself."""
        labels = [IGNORED] * len(self.input_ids)
        for span in self.spans:
            if span.train:
                labels[span.start : span.end] = self.input_ids[span.start : span.end]
        return labels


def without_eos(row: Encoded) -> Encoded:
    """The row with the same tokens, but no loss on EOS."""
    spans = [span._replace(train=span.train and span.name != EOS_SPAN) for span in row.spans]
    return replace(row, spans=spans)


def encode(template: Template, row: Mapping[str, str], tokenizer: Any) -> Encoded:
    """Render and encode one training row; see `encode_many`."""
    return next(encode_many(template, [row], tokenizer))


def encode_many(
    template: Template, rows: Iterable[Mapping[str, str]], tokenizer: Any
) -> Iterator[Encoded]:
    """Render and encode training rows in order, BATCH at a time: the tokenizer uses all cores for a
    batch, and works on the next one while this one is consumed."""
    waiting: tuple[list[list[Parts]], Future[list[list[Tokens]]]] | None = None
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        # The many small objects of a batch start garbage collections so often that they would take
        # a fifth of the time: leave out what exists now.
        gc.freeze()
        stack.callback(gc.unfreeze)
        for batch in chain(batches(rows, BATCH), [[]]):
            parts = [_trainable(template, row) for row in batch]
            ahead = (parts, pool.submit(_tokenized, parts, tokenizer)) if parts else None
            if waiting:
                yield from _join(waiting[0], waiting[1].result(), eos_id(tokenizer))
            waiting = ahead


def batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Divide things into lists of `size`; the last one may be shorter."""
    iterator = iter(things)
    while batch := list(islice(iterator, size)):
        yield batch


def _tokenized(rows: Sequence[Sequence[Parts]], tokenizer: Any) -> list[list[Tokens]]:
    """For each row the tokens of the prompt and of the completion of every turn, in order."""
    first = tokenize([turns[0][0] for turns in rows], tokenizer, special=True)
    rest = [part for turns in rows for part in list(chain(*turns))[1:]]
    others = iter(tokenize(rest, tokenizer, special=False))
    return [
        [tokens, *islice(others, 2 * len(turns) - 1)]
        for tokens, turns in zip(first, rows, strict=True)
    ]


def _join(
    rows: Sequence[Sequence[Parts]], tokens: Sequence[Sequence[Tokens]], eos: int
) -> Iterator[Encoded]:
    for turns, coded in zip(rows, tokens, strict=True):
        ids: list[int] = []
        spans: list[Span] = []
        prompt_length = 0
        for (asked, answer), prompt, completion in zip(turns, coded[::2], coded[1::2], strict=True):
            spans += lay(asked, prompt, len(ids))
            ids += prompt.ids
            prompt_length = len(ids)
            spans += lay(answer, completion, prompt_length)
            ids += completion.ids
            spans.append(Span(EOS_SPAN, len(ids), len(ids) + 1, train=True))
            ids.append(eos)
        yield Encoded(ids, spans, prompt_length)


def _trainable(template: Template, row: Mapping[str, str]) -> list[Parts]:
    """The segments with text of the prompt and of the completion of each turn."""
    parts = []
    for turn in split_turns(template.rendered(row)):
        prompt, completion = ([s for s in part if s.text] for part in at_the_answer(turn))
        learns = any(segment.train for segment in completion)
        if not learns or not prompt:
            what = "gives nothing to start from" if learns else "learns nothing from a row"
            text = "".join(segment.text for segment in (*prompt, *completion))
            raise FasttuneError(
                f"template '{template.name}' {what}",
                f"the row that ends with {text[-80:]!r}",
                "a row needs text in a given part, then in a learned one",
            )
        parts.append((prompt, completion))
    return parts


def limit_lengths(
    rows: Iterable[tuple[int, Encoded]], max_length: int, overlong: str, counts: Counter[str]
) -> Iterator[tuple[int, Encoded]]:
    """The rows of at most `max_length` tokens, and what the policy `overlong` leaves of the others.

    "drop" leaves them out; "truncate" leaves out the last turns of a conversation, or else cuts the
    end of the only completion but keeps EOS, and drops a row whose prompt alone leaves no room for
    a learned token; "error" raises. No turn loses its EOS.

    Args:
        rows: (place, row), from 0.
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


def encode_prompt(template: Template, row: Mapping[str, str], tokenizer: Any) -> list[int]:
    """The ids generation starts from: the first `prompt_length` ids of the same row in training."""
    *earlier, last = split_turns(template.opening(row))
    turns = [*map(at_the_answer, earlier), (last, [])]
    ids: list[int] = []
    for at, tokens in enumerate(_tokenized([turns], tokenizer)[0][:-1]):
        ids += [*tokens.ids, eos_id(tokenizer)] if at % 2 else tokens.ids
    return ids


def response_tokens(template: Template, row: Row, tokenizer: Any) -> range:
    """The places in the encoded row of the tokens with text of the response itself. Tags around it
    do not count; a token that holds the end of a tag and the first letter does.

    Rendering the row without the response shows where it is. If a computed format changes its text,
    the whole section counts.
    """
    section, column = template.response
    response = row[column]
    full, without = (
        at_the_answer(split_turns(template.rendered(each))[-1])[1]
        for each in (row, row.with_turn({column: ""}))
    )
    text, bare = ("".join(s.text for s in segments) for segments in (full, without))
    start, end = next(
        (
            (at, at + len(response))
            for at in range(len(bare), -1, -1)
            if bare[:at] + response + bare[at:] == text
        ),
        _section(full, section),
    )
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [at for at, (a, b) in enumerate(coded["offset_mapping"]) if a < end and b > start]
    prompt = len(encode_prompt(template, row, tokenizer))
    return range(prompt + inside[0], prompt + inside[-1] + 1) if inside else range(0)


def _section(segments: Sequence[Segment], name: str) -> tuple[int, int]:
    """The characters from the first to the last segment of that name."""
    ends = list(accumulate((len(segment.text) for segment in segments), initial=0))
    of_name = [at for at, segment in enumerate(segments) if segment.name == name]
    return (ends[of_name[0]], ends[of_name[-1] + 1]) if of_name else (0, ends[-1])
