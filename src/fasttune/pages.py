"""Pages from Jinja templates that lie beside the code, and HTML for a notebook's cell."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fasttune.terminal import visible


def environment(folder: Path, html: bool = False, **filters: Any) -> Environment:
    """Jinja for the templates of a folder; an undefined name is an error, and control characters
    are shown.

    Args:
        html: escape what is shown.
        filters: name -> function.
    """
    pages = Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters.update(filters)
    return pages


def framed(page: str, height: int = 640) -> str:
    """An HTML page in a frame, which keeps its styles and scripts apart from the notebook's."""
    style = f"width:100%;height:{height}px;border:1px solid #8884"
    return f'<iframe srcdoc="{escape(page)}" style="{style}"></iframe>'


def picture(png: Path, words: str) -> str:
    """A PNG file, embedded so that the notebook shows it on other machines too."""
    data = base64.b64encode(png.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}" style="max-width:100%">'
