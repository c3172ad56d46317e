"""Segments and a tokenizer -> input ids, labels and spans.

The prompt and the completion of a turn are tokenized apart, each as one string. BPE merges across
any other border (the `>` of `<|response|>` and a quote are one token in GPT-2's vocabulary); the
one border that must be a token border is the one where generation begins: nothing can merge across
it. A conversation has one in every turn, and EOS at the end of each.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
        input_ids: n token ids, EOS at the end of each turn.
        spans: cover the n tokens in order, without gaps; the last is EOS.
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
        """n ids: those of the spans that are learned, IGNORED where no loss is taken. Position t's
        label is the token at t: the model shifts them itself."""
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
    batch, and works on the next one while this one is given out.

    Raises:
        FasttuneError: nothing is learned from a row or nothing is given before it, or the tokenizer
            gives no offsets or has no EOS.
    """
    waiting: tuple[list[list[Parts]], Future[list[list[Tokens]]]] | None = None
    with ThreadPoolExecutor(1) as pool, _frozen():
        for batch in chain(batches(rows, BATCH), [[]]):
            parts = [_trainable(template, row) for row in batch]
            ahead = (parts, pool.submit(_tokenized, parts, tokenizer)) if parts else None
            if waiting:
                yield from _join(waiting[0], waiting[1].result(), eos_id(tokenizer))
            waiting = ahead


@contextmanager
def _frozen() -> Iterator[None]:
    """What exists by now is left out of garbage collections: the many small objects of a batch of
    rows set them off so often that they took a fifth of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` things, the last one shorter."""
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
    """The segments with text of the prompt and of the completion of each turn, none of them
    empty."""
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


def encode_prompt(template: Template, row: Mapping[str, str], tokenizer: Any) -> list[int]:
    """The ids generation starts from: the first `prompt_length` ids of the same row in training."""
    *earlier, last = split_turns(template.opening(row))
    turns = [*map(at_the_answer, earlier), (last, [])]
    ids: list[int] = []
    for at, tokens in enumerate(_tokenized([turns], tokenizer)[0][:-1]):
        ids += [*tokens.ids, eos_id(tokenizer)] if at % 2 else tokens.ids
    return ids


def response_tokens(template: Template, row: Row, tokenizer: Any) -> range:
    """The places in the encoded row of the tokens that carry text of the response itself: tags
    around it do not count, a token that holds the end of a tag and the first letter does.

    The response is found by rendering the row without it, not by searching for it. Where a computed
    format changes its text, the whole section counts.
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


def describe_row(row: Encoded, tokenizer: Any) -> list[dict[str, Any]]:
    """The spans of an encoded row as text and ids, for people and scripts."""
    return [
        {
            "section": span.name,
            "train": span.train,
            "ids": row.input_ids[span.start : span.end],
            "text": tokenizer.decode(
                row.input_ids[span.start : span.end], clean_up_tokenization_spaces=False
            ),
        }
        for span in row.spans
    ]


def _section(segments: Sequence[Segment], name: str) -> tuple[int, int]:
    """The characters from the first to the last segment of that name."""
    ends = list(accumulate(len(segment.text) for segment in segments))
    of_name = [at for at, segment in enumerate(segments) if segment.name == name]
    if not of_name:
        return 0, ends[-1]
    return ends[of_name[0]] - len(segments[of_name[0]].text), ends[of_name[-1]]
