"""Every package that the code imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"fasttune", "fasttune_plugins"}
UNSLOTHS = {"torchvision"}
"""Comes with Unsloth; models/__init__.py hides it if it is broken, and uses nothing of it."""
NOT_INSTALLED = {"llama_cpp": "llama-cpp-python", "lm_eval": "lm-eval", "xformers": "xformers"}
"""The distributions of modules that some machines lack; the others are looked up."""
RANGED = (
    "accelerate",
    "bitsandbytes",
    "peft",
    "torch",
    "transformers",
    "trl",
    "unsloth",
    "unsloth-zoo",
)


def imported() -> dict[str, str]:
    """The modules that src/ and plugins/ import from other packages, each with one file."""
    modules: dict[str, str] = {}
    for file in [*ROOT.glob("src/**/*.py"), *ROOT.glob("plugins/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                modules.setdefault(name.partition(".")[0], str(file.relative_to(ROOT)))
    ours = OWN | UNSLOTHS | set(sys.stdlib_module_names)
    return {module: file for module, file in modules.items() if module not in ours}


def declared(lines: list[str]) -> dict[str, Requirement]:
    requirements = map(Requirement, lines)
    return {canonicalize_name(each.name): each for each in requirements}


def distributions(module: str) -> set[str]:
    names = [NOT_INSTALLED[module]] if module in NOT_INSTALLED else None
    return {canonicalize_name(name) for name in names or packages_distributions().get(module, [])}


def test_what_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name != "test" for line in lines]
    known = declared(PROJECT["dependencies"]) | declared(optional)
    undeclared = {
        module: file for module, file in imported().items() if not distributions(module) & {*known}
    }
    assert undeclared == {}


@pytest.mark.parametrize("name", RANGED)
def test_libraries_that_change_have_a_tested_range(name):
    """The range holds the version that the tests run with, and ends before the next release that
    could change what fasttune calls."""
    requirement = declared(PROJECT["dependencies"])[name]
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("_", "-")
    tested = re.search(rf"^{name}==(\S+)", text, re.M)
    assert tested and requirement.specifier.contains(tested[1])
    major, minor = map(int, tested[1].split(".")[:2])
    assert {each.operator for each in requirement.specifier} == {">=", "<"}
    assert not requirement.specifier.contains(f"{major}.{minor + 1}")
