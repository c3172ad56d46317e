"""Write docs/commands.md from the help of the commands: python tools/make_command_docs.py"""

from __future__ import annotations

from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from fasttune.cli.app import app
from fasttune.files import write_text

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"


def command_docs() -> str:
    """The reference of all commands as Markdown."""
    command = get_command(app)
    context = typer.Context(command, info_name="fasttune")
    docs: str = get_docs_for_click(obj=command, ctx=context, name="fasttune", title="Commands")
    return docs.strip() + "\n"


if __name__ == "__main__":
    write_text(TARGET, command_docs())
