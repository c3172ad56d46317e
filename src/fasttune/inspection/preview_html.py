"""Previews as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from fasttune.inspection.preview import NEWLINE, SPACE, TAB, Preview, Section, visible


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
        if section.start in shown.beginnings:
            parts.append('<p class="begin">generation begins here</p>')
        kind = "trained" if section.train else "given"
        parts.append(
            f'<section class="{kind}"><h3>{html.escape(section.name)} '
            f"<small>{section.summary}</small></h3>"
            f"<p>{''.join(_html_pieces(section, ids))}</p></section>"
        )
    return "\n".join([*parts, "</article>"])


def _html_pieces(section: Section, ids: bool) -> Iterator[str]:
    position = section.start
    for piece in section.pieces:
        numbers = " ".join(map(str, piece.ids))
        labels = " ".join(map(str, section.labels(piece)))
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
