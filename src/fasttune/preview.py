"""What a row looks like to the model: its sections, its tokens, and which of them are learned.

The same `Preview` is rendered for a terminal, as an HTML page and as JSON.
"""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.encode import IGNORED, encode
from fasttune.errors import FasttuneError
from fasttune.template import Row, Template

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

    from fasttune.data import Loaded

SPACE, TAB, NEWLINE = "·", "→", "⏎"
MARKS = {" ": SPACE, "\t": TAB, "\n": NEWLINE}
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")  # controls, bidi and zero-width marks, spaces
SEPARATOR, GUTTER = "│", "▌"

# Foreground and background are both set, so that they are legible on light and dark terminals. Two
# shades of each take turns: they are what tells neighbouring tokens apart.
SHADES = {
    True: ("black on pale_green3", "black on dark_sea_green2"),
    False: ("black on grey70", "black on grey82"),
}


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


@dataclass(frozen=True)
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

    @property
    def tokens(self) -> int:
        return self.sections[-1].end

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
                        {"ids": p.ids, "labels": _labels(p, section), "text": p.text}
                        for p in section.pieces
                    ],
                }
                for section in self.sections
            ],
        }


def preview(
    template: Template, row: Row, tokenizer: Any, *, number: int, model: str, max_length: int
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
        trained=sum(label != IGNORED for label in encoded.labels),
        max_length=max_length,
    )


def pick(loaded: Loaded, first: int, count: int = 1) -> list[tuple[int, Row]]:
    """(number, row) of up to `count` usable rows from the `first`-th on, numbered from 1.

    Raises:
        FasttuneError: there is no such row.
    """
    if not 1 <= first <= len(loaded.rows):
        raise FasttuneError(
            f"there is no row {first}", loaded.source, f"give a row from 1 to {len(loaded.rows)}"
        )
    return list(enumerate(loaded.rows[first - 1 : first - 1 + count], start=first))


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


def _labels(piece: Piece, section: Section) -> list[int]:
    return piece.ids if section.train else [IGNORED] * len(piece.ids)


def visible(text: str) -> str:
    """The text with a mark for each character that cannot be seen or would change the screen."""
    return "".join(
        MARKS.get(char)
        or (f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in UNSEEN else char)
        for char in text
    )


# ---- terminal


@dataclass(frozen=True)
class TerminalPreview:
    """A rich renderable. Without colours the gutter marks what is learned, and bars part tokens."""

    preview: Preview
    ids: bool = False

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        shown = self.preview
        colour = console.color_system is not None and not console.no_color
        yield Text(
            f"template {shown.template}, row {shown.row}, tokenizer of {shown.model}", "bold"
        )
        yield Text(shown.summary, "" if shown.tokens <= shown.max_length else "bold red")
        legend = Text(f"{GUTTER} ")
        legend.append("trained", SHADES[True][0] if colour else "")
        legend.append("   ")
        legend.append("given", SHADES[False][0] if colour else "")
        legend.append(f"   {SPACE} space  {TAB} tab  {NEWLINE} newline")
        yield legend
        for section in shown.sections:
            yield Text()
            if section.start == shown.prompt_length:
                yield Text("---- generation begins here ----", "dim")
            gutter = f"{GUTTER} " if section.train else "  "
            count = section.end - section.start
            title = f"{section.name}, {'trained' if section.train else 'given'}, {count} "
            yield Text(f"{gutter}{title}{'token' if count == 1 else 'tokens'}", "bold")
            body = self._body(section, colour)
            for line in body.wrap(console, options.max_width - 2, overflow="fold"):
                line.rstrip()
                yield Text(gutter) + line

    def _body(self, section: Section, colour: bool) -> Text:
        from rich.text import Text

        body = Text(end="")
        for index, piece in enumerate(section.pieces):
            style = SHADES[section.train][index % 2] if colour else ""
            text = visible(piece.text)
            # A token that ends a line really ends it; the newlines inside one are only marked.
            ends_line = piece.text.endswith("\n") and index + 1 < len(section.pieces)
            body.append(text, style)
            if self.ids:
                body.append(f"‹{','.join(map(str, piece.ids))}›", "dim" if colour else "")
            if ends_line:
                body.append("\n")
            elif self.ids:
                body.append(" ")
            elif not colour and index + 1 < len(section.pieces):
                body.append(SEPARATOR)
        return body


# ---- HTML


def to_html(previews: Sequence[Preview], ids: bool = False) -> str:
    """A page of its own: no script, no other file, light or dark as the reader's system is."""
    name = html.escape(f"{previews[0].template}: what the model sees")
    rows = "\n".join(_html_row(shown, ids) for shown in previews)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{name}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        f"{_LEGEND}\n{rows}\n</body>\n</html>\n"
    )


def _html_row(shown: Preview, ids: bool) -> str:
    summary = html.escape(shown.summary)
    if shown.tokens > shown.max_length:
        summary = f'<strong class="over">{summary}</strong>'
    parts = [
        "<article>",
        f"<h2>Row {shown.row}</h2>",
        f"<p>Tokenizer of {html.escape(shown.model)}: {summary}</p>",
    ]
    for section in shown.sections:
        if section.start == shown.prompt_length:
            parts.append('<p class="begin">generation begins here</p>')
        kind = "trained" if section.train else "given"
        count = section.end - section.start
        parts.append(
            f'<section class="{kind}"><h3>{html.escape(section.name)} '
            f"<small>{kind}, {count} token{'' if count == 1 else 's'}</small></h3>"
            f"<p>{''.join(_html_pieces(section, ids))}</p></section>"
        )
    return "\n".join([*parts, "</article>"])


def _html_pieces(section: Section, ids: bool) -> Iterator[str]:
    position = section.start
    for piece in section.pieces:
        numbers = " ".join(map(str, piece.ids))
        labels = " ".join(map(str, _labels(piece, section)))
        last = position + len(piece.ids) - 1
        if len(piece.ids) == 1:
            title = f"token {position}: id {numbers}, label {labels}"
        else:
            title = (
                f"tokens {position} to {last}, whole only together: ids {numbers}, labels {labels}"
            )
        marked = html.escape(visible(piece.text))
        for mark in (SPACE, TAB, NEWLINE):
            marked = marked.replace(mark, f"<i>{mark}</i>")
        several = f"<sup>{len(piece.ids)}</sup>" if len(piece.ids) > 1 else ""
        number = f"<sub>{numbers}</sub>" if ids else ""
        end = "<br>" * piece.text.count("\n")
        yield f'<span title="{title}">{marked}{several}{number}</span>{end}'
        position = last + 1


_LEGEND = (
    '<p class="legend"><span class="trained">trained</span> the model learns to write it '
    '<span class="given">given</span> the model reads it, label -100 '
    f"<i>{SPACE}</i> space <i>{TAB}</i> tab <i>{NEWLINE}</i> newline "
    "<sup>3</sup> so many tokens make one piece. "
    "Each box is a token: point at it for its id and label.</p>"
)

_CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --dim: #666; --line: #ccc;
  --given: #e9e9ec; --given2: #d8d8de; --trained: #bfe8c8; --trained2: #9fd8ad; --over: #b00020; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #ececec; --dim: #a0a4ab;
  --line: #444; --given: #2b2e34; --given2: #3a3e46; --trained: #1d4d2b; --trained2: #2a6a3c;
  --over: #ff8a96; } }
body { background: var(--paper); color: var(--ink); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 0; }
small, .begin { color: var(--dim); font-weight: normal; } .over { color: var(--over); }
section { border-left: .35rem solid var(--given2); padding: .2rem .8rem; margin: .8rem 0; }
section.trained { border-color: var(--trained2); }
section p { margin: .3rem 0; font: .95rem/1.9 ui-monospace, "Noto Sans Mono CJK JP", monospace;
  overflow-wrap: anywhere; }
section span, .legend span { border-radius: .2rem; padding: .1rem 0; margin-right: 1px;
  display: inline-block; max-width: 100%; line-height: 1.3; unicode-bidi: isolate; }
.given span, span.given { background: var(--given); }
.given span:nth-of-type(even) { background: var(--given2); }
.trained span, span.trained { background: var(--trained); }
.trained span:nth-of-type(even) { background: var(--trained2); }
.legend span { padding: .1rem .4rem; margin-left: .6rem; }
i { font-style: normal; color: var(--dim); } sup, sub { color: var(--dim); font-size: .65em; }
.begin { border-top: 1px dashed var(--line); margin: 1rem 0 0; }
"""


def short_name(model: str) -> str:
    """A model's name for a headline: the last part of a folder's path, a Hub name as it is."""
    return Path(model).name if Path(model).is_dir() else model
