"""A preview in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from fasttune.inspection.preview import NEWLINE, SPACE, TAB, Preview, Section, visible

SEPARATOR, GUTTER = "│", "▌"

# Foreground and background are both set, so that they are legible on light and dark terminals. Two
# shades of each take turns: they are what tells neighbouring tokens apart.
SHADES = {
    True: ("black on pale_green3", "black on dark_sea_green2"),
    False: ("black on grey70", "black on grey82"),
}


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
