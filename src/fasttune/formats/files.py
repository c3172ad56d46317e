"""A format without Python: the same declaration as a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fasttune.errors import FasttuneError
from fasttune.formats.template import Template, from_declaration
from fasttune.yaml_text import read_yaml_file

SUFFIXES = (".yaml", ".yml")


def is_format_file(name: str) -> bool:
    """Whether this names a YAML file and not a template."""
    return name.endswith(SUFFIXES)


def read_format(file: Path) -> Template:
    """The format that a YAML file declares; an error names the line."""
    values, lines = read_yaml_file(file, "the format")
    if isinstance(values, dict):
        values = {"name": file.stem, **values}
    try:
        return from_declaration(values)
    except FasttuneError as error:
        raise FasttuneError(error.message, _place(file, error.where, lines), error.hint) from error


def _place(file: Path, where: str, lines: dict[str, int]) -> str:
    """The file with the line of a path such as "parts[2].text", or of what holds it."""
    keys = re.sub(r"\[(\d+)\]", r".\1", where).split(".")
    for end in range(len(keys), 0, -1):
        if line := lines.get(".".join(keys[:end])):
            return f"{file}, line {line}"
    return str(file)


def formats_in(folders: Iterable[Path]) -> list[Path]:
    """The YAML files in `formats/` of the folders, each once."""
    listed = [
        file for folder in folders for file in sorted((folder / "formats").absolute().glob("*"))
    ]
    files = {f.resolve(): f for f in listed if f.suffix in SUFFIXES and f.is_file()}
    return [*files.values()]
