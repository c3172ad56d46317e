"""How results show themselves in a notebook: people look rather than read."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path


def framed(page: str, height: int = 640) -> str:
    """A whole HTML page as a frame of a cell; its styles and scripts stay its own."""
    style = f"width:100%;height:{height}px;border:1px solid #8884"
    return f'<iframe srcdoc="{escape(page)}" style="{style}"></iframe>'


def picture(png: Path, words: str) -> str:
    """A PNG file within the cell, so that the notebook shows it elsewhere too."""
    data = base64.b64encode(png.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}" style="max-width:100%">'
