"""What a row looks like to the model: its sections, its tokens, and which of them are learned.

A `Preview` exports itself as JSON; `to_html` and `preview_terminal` display previews.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from fasttune.config import RunConfig
from fasttune.data.load import load_divided
from fasttune.data.rows import Rows
from fasttune.encoding.encode import EOS_SPAN, IGNORED, encode
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.job import Job
from fasttune.models.tokenizer import load_tokenizer
from fasttune.notebook import framed
from fasttune.pages import environment
from fasttune.runs import Run

log = logging.getLogger(__name__)

SPACE, TAB, NEWLINE = "·", "→", "⏎"
MARKS = {" ": SPACE, "\t": TAB, "\n": NEWLINE}
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")  # controls, bidi and zero-width marks, spaces


@dataclass(frozen=True)
class Piece:
    """One token, or the tokens that only together make whole characters.

    Attributes:
        ids: the token ids.
        text: what they stand for; bytes that make no character within the section are written ⟨E6⟩.
    """

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Section:
    """The tokens [start, end) of one segment."""

    name: str
    start: int
    end: int
    train: bool
    pieces: list[Piece]

    @property
    def summary(self) -> str:
        count = self.end - self.start
        kind = "trained" if self.train else "given"
        return f"{kind}, {count} {'token' if count == 1 else 'tokens'}"

    @property
    def placed(self) -> Iterator[tuple[int, Piece]]:
        """Yield (position of the first token, piece)."""
        lengths = (len(piece.ids) for piece in self.pieces)
        return zip(accumulate(lengths, initial=self.start), self.pieces, strict=False)

    def labels(self, piece: Piece) -> list[int]:
        return piece.ids if self.train else [IGNORED] * len(piece.ids)


@dataclass(frozen=True, repr=False)
class Preview:
    """A row as the model sees it, ready to be shown.

    Attributes:
        template: the template's name.
        model: the name of the model whose tokenizer was used.
        row: number of the row in its source, from 1.
        text: the rendered text, without EOS.
        sections: cover all tokens in order; the last is EOS.
        prompt_length: tokens before generation begins.
        trained: tokens a loss is taken on.
        max_length: the longest row that is trained on.
    """

    template: str
    model: str
    row: int
    text: str
    sections: list[Section]
    prompt_length: int
    trained: int
    max_length: int

    def __repr__(self) -> str:
        return f"<Preview of row {self.row} in {self.template}: {self.summary}>"

    def _repr_html_(self) -> str:
        return framed(to_html([self]), height=420)

    @property
    def tokens(self) -> int:
        return self.sections[-1].end

    @property
    def beginnings(self) -> set[int]:
        """Where generation begins: the first token of each answer."""
        found, due = {self.prompt_length}, True
        for section in self.sections:
            if due and section.train and section.start < self.prompt_length:
                found.add(section.start)
            due = section.name == EOS_SPAN or (due and not section.train)
        return found

    @property
    def summary(self) -> str:
        fits = (
            f"fits into {self.max_length}"
            if self.tokens <= self.max_length
            else f"TOO LONG: {self.tokens - self.max_length} over {self.max_length}"
        )
        return (
            f"prompt {self.prompt_length} tokens, trained {self.trained} of {self.tokens}, {fits}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The preview for scripts; `labels` holds -100 where no loss is taken."""
        return {
            "template": self.template,
            "model": self.model,
            "row": self.row,
            "text": self.text,
            "prompt_length": self.prompt_length,
            "tokens": self.tokens,
            "trained": self.trained,
            "max_length": self.max_length,
            "too_long": self.tokens > self.max_length,
            "sections": [
                {
                    "name": section.name,
                    "start": section.start,
                    "end": section.end,
                    "train": section.train,
                    "pieces": [
                        {"ids": p.ids, "labels": section.labels(p), "text": p.text}
                        for p in section.pieces
                    ],
                }
                for section in self.sections
            ],
        }


def preview(job: Job, row: int = 1) -> Preview:
    """What the model sees of a row to train on: its tokens by section, learned or given.

    Args:
        row: its number, from 1.

    Raises:
        FasttuneError: there is no such row, or it cannot be encoded.
    """
    if not 1 <= row <= len(job.train):
        raise FasttuneError(f"there is no row {row}", job.source, f"rows are 1 to {len(job.train)}")
    return preview_row(
        job.template,
        job.train[row - 1],
        load_tokenizer(job.model, job.template.end),
        number=row,
        model=job.model,
        max_length=job.config.model.max_length,
    )


def preview_row(
    template: Template,
    row: Row,
    tokenizer: Any,
    *,
    number: int,
    model: str,
    max_length: int,
) -> Preview:
    """Encode a row and name every token.

    Raises:
        FasttuneError: the row cannot be encoded (see `encode`).
    """
    encoded = encode(template, row, tokenizer)
    sections = [
        Section(
            span.name,
            span.start,
            span.end,
            span.train,
            list(pieces(encoded.input_ids[span.start : span.end], tokenizer)),
        )
        for span in encoded.spans
    ]
    return Preview(
        template=template.name,
        model=model,
        row=number,
        text=template.render(row),
        sections=sections,
        prompt_length=encoded.prompt_length,
        trained=encoded.trained,
        max_length=max_length,
    )


def preview_rows(
    config: RunConfig, template: Template, first: int, count: int = 1, run: Run | None = None
) -> list[Preview]:
    """Preview up to `count` usable rows of a config's data, or of those that a run trains on, from
    the `first`-th on.

    Raises:
        FasttuneError: there is no such row, or it cannot be encoded.
    """
    if run is not None:
        picked = pick(run.training_rows(), str(run.folder), first, count)
    else:
        loaded = load_divided(config.data, template).sources[0]
        if loaded.bad_rows:
            rows = f"{loaded.bad_rows} unusable row{'s' * (loaded.bad_rows != 1)}"
            log.warning("warning: %s: %s left out of the count", loaded.source, rows)
        picked = pick(loaded.rows, loaded.source, first, count)
    tokenizer = load_tokenizer(config.model.name, template.end)
    name = short_name(config.model.name or tokenizer.name_or_path)
    return [
        preview_row(
            template,
            row,
            tokenizer,
            number=number,
            model=name,
            max_length=config.model.max_length,
        )
        for number, row in picked
    ]


def pick(rows: Rows, source: str, first: int, count: int = 1) -> list[tuple[int, Row]]:
    """(number, row) of up to `count` usable rows from the `first`-th on, numbered from 1.

    Raises:
        FasttuneError: there is no such row.
    """
    if not 1 <= first <= len(rows):
        raise FasttuneError(f"there is no row {first}", source, f"give a row from 1 to {len(rows)}")
    last = min(first - 1 + count, len(rows))
    return [(at + 1, rows[at]) for at in range(first - 1, last)]


def short_name(model: str) -> str:
    """A model's name for a headline: the last part of a folder's path, a Hub name as it is."""
    return Path(model).name if Path(model).is_dir() else model


def pieces(ids: Sequence[int], tokenizer: Any) -> Iterator[Piece]:
    """Group tokens so that each group is whole characters.

    Byte-level BPE spreads one Japanese character over up to three tokens; none is text by itself.
    """
    to_bytes = _byte_reader(tokenizer)
    waiting: list[tuple[int, bytes]] = []
    for token in ids:
        waiting.append((token, to_bytes(token)))
        while waiting:
            try:
                text = b"".join(part for _, part in waiting).decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break  # the next token may complete the character
                first, part = waiting.pop(0)
                yield Piece([first], _with_hex(part))
            else:
                yield Piece([token for token, _ in waiting], text)
                waiting.clear()
    for token, part in waiting:
        yield Piece([token], _with_hex(part))


def _byte_reader(tokenizer: Any) -> Any:
    """A function from a token id to the bytes it stands for."""
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    byte_level = '"ByteLevel"' in json.dumps(decoder)

    def read(token: int) -> bytes:
        if token in added:
            return added[token].encode()
        word = str(tokenizer.convert_ids_to_tokens(token))
        if byte_level and all(char in _byte_alphabet() for char in word):
            return bytes(_byte_alphabet()[char] for char in word)
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes.fromhex(word[3:5])  # SentencePiece's byte fallback
        return word.replace("▁", " ").encode()

    return read


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself if printable, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _with_hex(part: bytes) -> str:
    decoded = part.decode(errors="surrogateescape")
    return "".join(
        f"⟨{ord(char) - 0xDC00:02X}⟩" if "\udc80" <= char <= "\udcff" else char for char in decoded
    )


def visible(text: str) -> str:
    """The text with a mark for each character that cannot be seen or would change the screen."""
    return "".join(
        MARKS.get(char)
        or (f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in UNSEEN else char)
        for char in text
    )


def to_html(previews: Sequence[Preview], ids: bool = False) -> str:
    """Return a page that needs no script, no other file and no network.

    Args:
        ids: show the token ids.
    """
    made = environment(Path(__file__).parent, html=True, visible=visible)
    template = made.get_template("preview.html.jinja")
    return template.render(previews=previews, ids=ids, marks=MARKS)
