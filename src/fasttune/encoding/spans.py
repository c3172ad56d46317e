"""Text -> token ids, and the segment that each token belongs to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fasttune.errors import FasttuneError
from fasttune.formats.parts import Segment


class Span(NamedTuple):
    """Tokens [start, end) of a row that belong to one segment."""

    name: str
    start: int
    end: int
    train: bool


def eos_id(tokenizer: Any) -> int:
    """The id that ends a text. A tokenizer without one is refused."""
    if tokenizer.eos_token_id is None:
        raise FasttuneError(
            "the tokenizer has no EOS token, so the model could not learn to stop",
            str(getattr(tokenizer, "name_or_path", "")),
            "set eos_token in the model's tokenizer_config.json",
        )
    return int(tokenizer.eos_token_id)


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: n token ids.
        offsets: the characters [start, end) that token i covers; (0, 0) for a special token. It is
            a function because only the tokens at the borders of segments count, and a list of all
            takes half as long as the tokenizing.
    """

    ids: list[int]
    offsets: Callable[[int], tuple[int, int]]


def tokenize(parts: Sequence[Sequence[Segment]], tokenizer: Any, special: bool) -> list[Tokens]:
    """The tokens of each part, tokenized as one string, with BOS and the like if `special`."""
    if not getattr(tokenizer, "is_fast", False):
        raise FasttuneError(
            "the tokenizer gives no offsets, which the loss mask is made from",
            f"{type(tokenizer).__name__} {getattr(tokenizer, 'name_or_path', '')}",
            "use a model with a tokenizer.json (a fast tokenizer)",
        )
    texts = ["".join(segment.text for segment in segments) for segments in parts]
    # The backend itself: transformers' call around it takes a fifth of the time.
    try:
        coded = whole_text_backend(tokenizer).encode_batch(texts, add_special_tokens=special)
    except TypeError as error:
        halves = [text for text in texts if any("\ud800" <= char <= "\udfff" for char in text)]
        if not halves:
            raise
        raise FasttuneError(
            "the template writes half of a surrogate pair, which is no character",
            repr(halves[0][-80:]),
            "correct the template",
        ) from error
    return [Tokens(encoding.ids, partial(_covered, encoding)) for encoding in coded]


def _covered(encoding: Any, token: int) -> tuple[int, int]:
    return encoding.token_to_chars(token) or (0, 0)


def lay(segments: Sequence[Segment], tokens: Tokens, shift: int) -> list[Span]:
    """Lay the segments of a part over its tokens, the first of which is token `shift` of the row.

    A token belongs to the segment it starts in. If it starts in a given segment and reaches a
    learned one, it belongs to that one: the model has to write all of it.
    """
    count, offsets = len(tokens.ids), tokens.offsets
    last = count  # special tokens behind the text have the offsets (0, 0)
    while last > 1 and offsets(last - 1)[1] == 0:
        last -= 1
    runs: list[tuple[Segment, int]] = []  # each with the token it ends before
    done, reach = 0, 0
    for at, segment in enumerate(segments):
        reach += len(segment.text)
        end = count
        if at + 1 < len(segments):
            end = bisect_left(range(count), reach, done, last, key=lambda token: offsets(token)[0])
        own = end
        while not segment.train and own > done and offsets(own - 1)[1] > reach:
            own -= 1
        if own > done:
            runs.append((segment, own))
        for token in range(own, end):
            runs.append((_reached(segments[at:], reach, offsets(token)[1]), token + 1))
        done = end
    spans: list[Span] = []
    start = 0
    for at, (segment, end) in enumerate(runs):
        if at + 1 == len(runs) or runs[at + 1][0] is not segment:
            spans.append(Span(segment.name, shift + start, shift + end, segment.train))
            start = end
    return spans


def _reached(segments: Sequence[Segment], reach: int, end: int) -> Segment:
    """The first learned segment before character `end`, else the first one, which ends at
    `reach`."""
    for later in segments[1:]:
        if reach >= end:
            break
        if later.train:
            return later
        reach += len(later.text)
    return segments[0]


def whole_text_backend(tokenizer: Any) -> Any:
    """The tokenizer's backend, without truncation and padding, which every call of transformers
    sets again, and with offsets that cover a text without gaps.

    GPT-2's tokenizer (and so Phi-2's) trims white space off its offsets: a token that is only a
    newline would be empty and belong to no segment.
    """
    from tokenizers.processors import ByteLevel, Sequence

    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    processor = backend.post_processor
    parts: Any = processor if isinstance(processor, Sequence) else [processor]
    for part in parts:
        if isinstance(part, ByteLevel):
            part.trim_offsets = False
    return backend
