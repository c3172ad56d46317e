"""Text and HTML files from Jinja templates that lie beside the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path, html: bool = False, **filters: Any) -> Environment:
    """Jinja for the templates of a folder. A name that is not given to a template is an error, and
    a line that holds only a block tag leaves no line behind.

    Args:
        html: escape what is shown.
        filters: name -> function.
    """
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(filters)
    return made
