"""Write docs/commands.md from the help of the commands: python tools/make_command_docs.py"""

from __future__ import annotations

import textwrap
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from fasttune.cli.app import all_commands
from fasttune.files import write_text

WIDTH = 120
TARGET = Path(__file__).parent.parent / "docs" / "commands.md"


def command_docs() -> str:
    """The reference of all commands as Markdown."""
    command = all_commands()
    context = typer.Context(command, info_name="fasttune")
    docs: str = get_docs_for_click(obj=command, ctx=context, name="fasttune", title="Commands")
    return "\n".join(map(_wrapped, docs.strip().splitlines())) + "\n"


def _wrapped(line: str) -> str:
    """A paragraph, or an item of a list, in lines of the width of prose."""
    if len(line) <= WIDTH or line.startswith(("|", "    ")):
        return line
    indent = "  " if line.startswith("* ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    write_text(TARGET, command_docs())
