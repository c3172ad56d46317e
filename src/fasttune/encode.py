"""Segments and a tokenizer -> input ids, labels and spans.

The prompt and the completion are tokenized apart, each as one string. BPE merges across any other
border (the `>` of `<|response|>` and a quote are one token in GPT-2's vocabulary); the one border
that must be a token border is the one where generation begins: nothing can merge across it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from fasttune.errors import FasttuneError
from fasttune.template import Row, Segment, Template

IGNORED = -100
"""The label that torch's cross entropy skips."""

EOS_SPAN = "eos"
Overlong = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Span:
    """Tokens [start, end) of a row that belong to one segment."""

    name: str
    start: int
    end: int
    train: bool


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it.

    Attributes:
        input_ids: n token ids, EOS last.
        labels: n ids; IGNORED where no loss is taken. Position t's label is the token at t: the
            model shifts them itself.
        spans: cover the n tokens in order, without gaps; the last is EOS.
        prompt_length: number of tokens before generation begins.
    """

    input_ids: list[int]
    labels: list[int]
    spans: list[Span]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(template: Template, row: Row, tokenizer: Any) -> Encoded:
    """Encode a training row.

    Raises:
        FasttuneError: the template learns nothing from the row or gives nothing before it, or the
            tokenizer gives no offsets or has no EOS.
    """
    prompt, completion = (
        [segment for segment in part if segment.text] for part in _parts(template, row)
    )
    learns = any(segment.train for segment in completion)
    if not learns or not prompt:
        what = "gives nothing to start from" if learns else "learns nothing from a row"
        raise FasttuneError(
            f"template '{template.name}' {what}",
            f"instruction: {row.get('instruction', '')[:80]}",
            "yield a given(...) segment, then at least one learn(...) segment with text",
        )
    ids, spans = _encode_part(prompt, tokenizer, special=True, offset=0)
    prompt_length = len(ids)
    more_ids, more_spans = _encode_part(completion, tokenizer, special=False, offset=prompt_length)
    eos = eos_id(tokenizer)
    ids = [*ids, *more_ids, eos]
    spans = [*spans, *more_spans, Span(EOS_SPAN, len(ids) - 1, len(ids), train=True)]
    labels = [IGNORED] * len(ids)
    for span in spans:
        if span.train:
            labels[span.start : span.end] = ids[span.start : span.end]
    return Encoded(ids, labels, spans, prompt_length)


def encode_prompt(template: Template, row: Row, tokenizer: Any) -> list[int]:
    """The ids generation starts from: the first `prompt_length` ids of the same row in training."""
    return list(tokenizer(template.prompt(row)).input_ids)


def response_tokens(template: Template, row: Row, tokenizer: Any) -> range:
    """The places in the encoded row of the tokens that carry text of the response itself: tags
    around it do not count, a token that holds the end of a tag and the first letter does.

    The response is found by rendering the row without it, not by searching for it. Where a template
    changes its text, the whole section counts.
    """
    section, column = template.response
    response = row[column]
    _, full = _parts(template, row)
    _, without = _parts(template, {**row, column: ""})
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


def _parts(template: Template, row: Row) -> tuple[list[Segment], list[Segment]]:
    """The segments of the prompt, and those of the completion. The first learned segment ends the
    prompt even without text: `Template.prompt` ends there too."""
    segments = list(template.segments(row))
    start = next((i for i, segment in enumerate(segments) if segment.train), len(segments))
    return segments[:start], segments[start:]


def _section(segments: Sequence[Segment], name: str) -> tuple[int, int]:
    """The characters from the first to the last segment of that name."""
    ends = list(accumulate(len(segment.text) for segment in segments))
    of_name = [at for at, segment in enumerate(segments) if segment.name == name]
    if not of_name:
        return 0, ends[-1]
    return ends[of_name[0]] - len(segments[of_name[0]].text), ends[of_name[-1]]


def eos_id(tokenizer: Any) -> int:
    """The id that ends a text.

    Raises:
        FasttuneError: the tokenizer has none, so the model could not learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise FasttuneError(
            "the tokenizer has no EOS token, so the model could not learn to stop",
            str(getattr(tokenizer, "name_or_path", "")),
            "set eos_token in the model's tokenizer_config.json",
        )
    return int(tokenizer.eos_token_id)


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


def fit(rows: Sequence[Encoded], max_length: int, overlong: Overlong) -> Fitted:
    """Apply the policy for rows of more than `max_length` tokens.

    "drop" leaves them out; "truncate" cuts the end of the completion but keeps EOS, and drops a row
    whose prompt alone leaves no room for a learned token; "error" raises. EOS is never removed.

    Raises:
        FasttuneError: a row is too long under "error".
    """
    kept: list[tuple[int, Encoded]] = []
    dropped: list[int] = []
    truncated: list[int] = []
    for index, row in enumerate(rows):
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


def _encode_part(
    segments: Sequence[Segment], tokenizer: Any, special: bool, offset: int
) -> tuple[list[int], list[Span]]:
    """Tokenize one part as one string and lay its segments over the tokens."""
    text = "".join(segment.text for segment in segments)
    if not getattr(tokenizer, "is_fast", False):
        raise FasttuneError(
            "the tokenizer gives no offsets, which the loss mask is made from",
            f"{type(tokenizer).__name__} {getattr(tokenizer, 'name_or_path', '')}",
            "use a model with a tokenizer.json (a fast tokenizer)",
        )
    _untrim_offsets(tokenizer)
    coded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    owners = _owners(segments, coded["offset_mapping"])
    return list(coded["input_ids"]), list(_runs(owners, offset))


def _owners(segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]) -> list[Segment]:
    """The segment each token belongs to: the one it starts in, but a learned one wins.

    A token that begins in a given segment and ends in a learned one carries learned text, and in a
    completion the model has to write all of it.
    """
    owners: list[Segment] = []
    first, first_start = 0, 0
    for start, end in offsets:
        while first + 1 < len(segments) and first_start + len(segments[first].text) <= start:
            first_start += len(segments[first].text)
            first += 1
        owner, index, reach = segments[first], first, first_start + len(segments[first].text)
        while reach < end and not owner.train and index + 1 < len(segments):
            index += 1
            reach += len(segments[index].text)
            if segments[index].train:
                owner = segments[index]
        owners.append(owner)
    return owners


def _runs(owners: Sequence[Segment], offset: int) -> Iterable[Span]:
    start = 0
    for end in range(1, len(owners) + 1):
        if end == len(owners) or owners[end] is not owners[start]:
            yield Span(owners[start].name, offset + start, offset + end, owners[start].train)
            start = end


def _untrim_offsets(tokenizer: Any) -> None:
    """Make offsets cover the text without gaps; the ids stay the same.

    GPT-2's tokenizer (and so Phi-2's) trims white space off its offsets: the span of a token that
    is only a newline would be empty, and which segment it belongs to could not be told.
    """
    from tokenizers.processors import ByteLevel, Sequence

    processor = tokenizer.backend_tokenizer.post_processor
    parts: Any = processor if isinstance(processor, Sequence) else [processor]
    for part in parts:
        if isinstance(part, ByteLevel):
            part.trim_offsets = False
