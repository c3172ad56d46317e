"""What a row looks like to the model: its sections, its tokens, and which of them are learned.

A `Preview` exports itself as JSON; `preview_html` and `TerminalPreview` display it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from fasttune.config import RunConfig
from fasttune.data.check import by_ending, ending_rows
from fasttune.data.divide import load_divided
from fasttune.data.finding import Finding
from fasttune.data.rows import ChosenRows, Rows
from fasttune.encoding.encode import EOS_SPAN, IGNORED, encode
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.job import Job
from fasttune.models.tokenizer import load_tokenizer
from fasttune.pages import environment, framed
from fasttune.runs import Run

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

    Bytes that make no character within the section are written ⟨E6⟩ in `text`.
    """

    ids: list[int]
    labels: list[int]
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


@dataclass(frozen=True, repr=False)
class Preview:
    """A row as the model sees it, ready to be shown: `text` is without EOS, the sections cover all
    tokens in order and end with EOS, and a loss is taken on `trained` tokens."""

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

    def __str__(self) -> str:
        out = Console(file=StringIO(), width=120, color_system=None)
        out.print(TerminalPreview(self))
        return out.file.getvalue()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return framed(preview_html([self]), height=420)

    @property
    def tokens(self) -> int:
        return self.sections[-1].end

    @property
    def beginnings(self) -> set[int]:
        """Where generation begins: the first token of each answer."""
        starts, due = {self.prompt_length}, True
        for section in self.sections:
            if due and section.train and section.start < self.prompt_length:
                starts.add(section.start)
            due = section.name == EOS_SPAN or (due and not section.train)
        return starts

    @property
    def summary(self) -> str:
        over = self.tokens - self.max_length
        fits = f"TOO LONG: {over} over" if over > 0 else "fits into"
        learned = f"trained {self.trained} of {self.tokens}"
        return f"prompt {self.prompt_length} tokens, {learned}, {fits} {self.max_length}"

    def as_dict(self) -> dict[str, Any]:
        """The preview for scripts; `labels` holds -100 where no loss is taken."""
        too_long = self.tokens > self.max_length
        return {**asdict(self), "tokens": self.tokens, "too_long": too_long}


def preview(job: Job, row: int | None = None) -> Preview:
    """What the model sees of a row to train on: its tokens by section, learned or given.

    Args:
        row: its number in the source, in JSON Lines and CSV the line; by default the first row's.
    """
    [(number, chosen)] = pick(job.train, job.source, row)
    tokenizer = load_tokenizer(job.model, job.template.end)
    length = job.config.model.max_length
    return preview_row(
        job.template, chosen, tokenizer, number=number, model=job.model, max_length=length
    )


def preview_row(
    template: Template, row: Row, tokenizer: Any, *, number: int, model: str, max_length: int
) -> Preview:
    """Encode a row and name every token."""
    encoded = encode(template, row, tokenizer)
    sections = []
    for name, start, end, train in encoded.spans:
        pieces = [
            Piece(ids, ids if train else [IGNORED] * len(ids), text)
            for ids, text in whole_characters(encoded.input_ids[start:end], tokenizer)
        ]
        sections.append(Section(name, start, end, train, pieces))
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
    config: RunConfig,
    template: Template,
    first: int | None = None,
    count: int = 1,
    run: Run | None = None,
) -> list[Preview]:
    """Preview up to `count` usable rows of a config's data, or of those that a run trains on, from
    the row with the number `first` on."""
    tokenizer = load_tokenizer(config.model.name, template.end)
    if run is not None:
        picked = pick(run.training_rows(), str(run.folder), first, count)
    else:
        loaded = load_divided(config.data, template).sources[0]
        rows, eos = loaded.rows, tokenizer.eos_token or ""
        usable, ended = by_ending(rows, eos)
        findings = ending_rows(rows, ended, eos) + loaded.findings
        picked = pick(ChosenRows(rows, usable), loaded.source, first, count, findings)
    name, length = config.model.name or tokenizer.name_or_path, config.model.max_length
    name = Path(name).name if Path(name).is_dir() else name
    return [
        preview_row(template, row, tokenizer, number=number, model=name, max_length=length)
        for number, row in picked
    ]


def pick(
    rows: Rows,
    source: str,
    first: int | None = None,
    count: int = 1,
    findings: Sequence[Finding] = (),
) -> list[tuple[int, Row]]:
    """(number, row) of up to `count` usable rows, from the one with the number `first` on, or from
    the first one. A row has the number that messages about the source use."""
    numbers = [rows.number(at) for at in range(len(rows))]
    if not numbers:
        where = "\n".join([source, *map(str, findings[:1])])
        raise FasttuneError("no row can be used", where, "fix these rows")
    if first is not None and first not in numbers:
        if wrong := [each for each in findings if each.row == first and each.fatal]:
            where = "\n".join([source, *map(str, wrong)])
            raise FasttuneError(f"row {first} cannot be used", where, "fix it, or show another row")
        hint = f"give a row from {min(numbers)} to {max(numbers)}"
        raise FasttuneError(f"there is no row {first}", source, hint)
    start = 0 if first is None else numbers.index(first)
    return list(zip(numbers[start : start + count], rows[start : start + count], strict=True))


def whole_characters(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[list[int], str]]:
    """Group tokens so that each group is whole characters; yield the ids and the text of each.

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
                yield [first], _with_hex(part)
            else:
                yield [token for token, _ in waiting], text
                waiting.clear()
    for token, part in waiting:
        yield [token], _with_hex(part)


def _byte_reader(tokenizer: Any) -> Any:
    """A function from a token id to the bytes it stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    byte_level = '"ByteLevel"' in json.dumps(decoder)

    def read(token: int) -> bytes:
        if token in added:
            return added[token].encode()
        word = str(tokenizer.convert_ids_to_tokens(token))
        if byte_level and all(char in alphabet for char in word):
            return bytes(alphabet[char] for char in word)
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes.fromhex(word[3:5])  # SentencePiece's byte fallback
        return word.replace("▁", " ").encode()

    return read


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


def preview_html(previews: Sequence[Preview], ids: bool = False) -> str:
    """A page that needs no script, no other file and no network."""
    jinja = environment(Path(__file__).parent, html=True, visible=visible)
    return jinja.get_template("preview.html.jinja").render(previews=previews, ids=ids, marks=MARKS)


@dataclass(frozen=True)
class TerminalPreview:
    """A rich renderable. Without colours the gutter marks what is learned, and bars part tokens."""

    preview: Preview
    ids: bool = False

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
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
            if section.start in shown.beginnings:
                yield Text("---- generation begins here ----", "dim")
            gutter = f"{GUTTER} " if section.train else "  "
            yield Text(f"{gutter}{section.name}, {section.summary}", "bold")
            body = self._body(section, colour)
            for line in body.wrap(console, options.max_width - 2, overflow="fold"):
                line.rstrip()
                yield Text(gutter) + line

    def _body(self, section: Section, colour: bool) -> Text:
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
