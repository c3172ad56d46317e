"""Tables without lines, which look the same in a terminal and in a log."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def table(
    headings: Sequence[str], rows: Iterable[Sequence[RenderableType]], right: Container[str] = ()
) -> Table:
    """A table of text. Long cells are folded, and text is never read as rich's markup.

    Args:
        headings: the first line, left out if all are empty.
        right: the headings of the columns to align on the right.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(headings))
    for heading in headings:
        side = "right" if heading in right else "left"
        made.add_column(Text(heading), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def facts(values: Mapping[str, object]) -> Table:
    """Names and values, one pair a line."""
    from rich.text import Text

    return table(("", ""), [(Text(name, "bold"), str(value)) for name, value in values.items()])
