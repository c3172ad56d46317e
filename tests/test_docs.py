"""The pages: no long lines, and no way through the code that is not there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
WIDTH = 120
STEP = re.compile(r"^(\d+)\. `([\w/]+\.py)` `(\w+)`: ", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.py)` `(\w+)`")


def prose(text):
    """(number, line) of the lines outside code blocks and tables, where links count by their
    words."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("    ", "|")):
            yield number, re.sub(r"\]\([^)]*\)", "]", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_prose_is_longer_than_a_screen_is_wide(page):
    lines = prose(page.read_text(encoding="utf-8"))
    assert [number for number, line in lines if len(line) > WIDTH] == []


def test_only_prose_is_measured():
    text = "short\n    code\n| a table\n```\nfenced\n```\n[a link](far/away.md)\n"
    assert list(prose(text)) == [(1, "short"), (7, "[a link]")]


def test_the_way_of_a_row_has_ten_steps():
    steps = STEP.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert [int(number) for number, _, _ in steps] == list(range(1, 11))


def test_files_and_functions_named_on_the_page_exist():
    pairs = NAMED.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(pairs) >= 10
    for file, name in pairs:
        tree = ast.parse((ROOT / "src" / "fasttune" / file).read_text(encoding="utf-8"))
        defined = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        assert name in defined, f"{file} has no {name}"


def test_files_and_folders_named_on_the_page_exist():
    page = ARCHITECTURE.read_text(encoding="utf-8")
    places = (ROOT, ROOT / "src" / "fasttune")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", page))
    assert named
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert not missing


def test_the_layers_on_the_page_are_those_the_linter_checks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (checked,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    section = ARCHITECTURE.read_text(encoding="utf-8").partition("## Layers")[2]
    drawn = re.findall(r"^    (\w+(?: \| \w+)*)", section, re.MULTILINE)
    assert drawn == checked
