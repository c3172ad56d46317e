"""The contracts between packages hold, and a forbidden import is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
DOWN = "Imports point down"
FACE = "Plugins import `fasttune` and nothing below it"
CIRCLE = "No circle of imports inside a package"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of both packages, to break; import-linter looks where it is run first."""
    for source, name in (("src/fasttune", "fasttune"), ("plugins", "fasttune_plugins")):
        ignored = shutil.ignore_patterns("__pycache__", "*.jsonl", "*.css", "*.js")
        shutil.copytree(ROOT / source, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_they_hold(copy):
    status, out = lint(copy)
    assert status == 0, out
    for contract in (DOWN, FACE, CIRCLE):
        assert f"{contract} KEPT" in out


@pytest.mark.parametrize(
    ("file", "line", "broken", "said"),
    [
        # Plugins take the template from the face, not from where it lives.
        (
            "fasttune_plugins/alpaca.py",
            "from fasttune.formats.template import Template",
            FACE,
            "fasttune_plugins.alpaca -> fasttune.formats.template",
        ),
        # An import up, only for a type.
        (
            "fasttune/formats/row.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import fasttune.plugins.metric",
            DOWN,
            "fasttune.formats.row -> fasttune.plugins.metric",
        ),
        # Between two packages of one layer, within a function.
        (
            "fasttune/comparison/plan.py",
            "def _late():\n    import fasttune.benchmark.turns",
            DOWN,
            "fasttune.comparison.plan -> fasttune.benchmark.turns",
        ),
        # A circle of two modules of one package, within a function.
        (
            "fasttune/formats/row.py",
            "def _late():\n    import fasttune.formats.template",
            CIRCLE,
            "fasttune.formats",
        ),
        # A module that stands in no layer.
        ("fasttune/helpers.py", "", DOWN, "fasttune.helpers"),
    ],
)
def test_a_forbidden_import_is_found(copy, file, line, broken, said):
    with (copy / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    status, out = lint(copy)
    assert status == 1
    assert f"{broken} BROKEN" in out and said in out, out
