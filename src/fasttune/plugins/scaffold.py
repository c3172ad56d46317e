"""A new template: a working plugin file and its test, by itself or as a package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fasttune.errors import FasttuneError
from fasttune.files import write_text
from fasttune.plugins.registry import Plugins, Provider

VALID_NAME = re.compile(r"[a-z]([a-z0-9_-]{0,60}[a-z0-9])?")

PLUGIN = '''\
"""The {name} format."""

from fasttune import Template, given, hookimpl, learn

{constant} = Template(
    name="{name}",
    description="### Question / ### Context / ### Answer",
    parts=[
        given("instruction", "### Question:\\n{{instruction}}\\n\\n"),
        given("context", "### Context:\\n{{input}}\\n\\n", when="input"),
        given("response", "### Answer:\\n"),
        learn("response", "{{output}}"),
    ],
)


@hookimpl
def register_templates():
    return [{constant}]
'''

FORMAT = """\
# The {name} format. given: text that the model reads; learn: text that it learns to write.
name: {name}
description: "### Question / ### Context / ### Answer"
parts:
  - given: instruction
    text: "### Question:\\n{{instruction}}\\n\\n"
  - given: context
    text: "### Context:\\n{{input}}\\n\\n"
    when: input  # only for rows that have one
  - given: response
    text: "### Answer:\\n"
  - learn: response
    text: "{{output}}"
"""

TEST = """\
from pathlib import Path

from fasttune import check_template, load_plugin

template = load_plugin(Path(__file__).with_name("{name}.py")).template("{name}")


def test_text():
    row = {{"instruction": "Add 2 and 3.", "input": "", "output": "5"}}
    assert template.prompt(row) == "### Question:\\nAdd 2 and 3.\\n\\n### Answer:\\n"
    assert template.render(row) == template.prompt(row) + "5"
    assert template.parse("5") == {{"response": "5"}}


def test_check():
    assert [result for result in check_template(template) if result.status != "ok"] == []
"""


PACKAGE_TEST = """\
from fasttune import check_template
from {module} import {constant} as template
"""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
description = "The {name} prompt format for fasttune."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["fasttune"]

# fasttune finds the plugin by this: the group is `fasttune`, the value is a module.
[project.entry-points.fasttune]
{name} = "{module}"

[tool.setuptools]
package-dir = {{ "" = "src" }}
py-modules = ["{module}"]
"""

README = """\
# {distribution}

The {name} prompt format for fasttune.

    pip install -e .
    fasttune templates check {name}
    fasttune run --template {name} --data rows.jsonl

Tests: `pip install pytest`, then `pytest`.
"""


def new_package(name: str, folder: Path, plugins: Plugins, force: bool = False) -> list[Path]:
    """Write a package of one plugin that pip installs, fasttune-NAME, into `folder`.

    Raises:
        FasttuneError: as `new_template`.
    """
    distribution = f"fasttune-{name.replace('_', '-')}"
    module = distribution.replace("-", "_")
    home = folder / distribution
    test = TEST[TEST.index("\n\ndef") :]
    return _write(
        name,
        {
            home / "pyproject.toml": PYPROJECT,
            home / "README.md": README,
            home / "src" / f"{module}.py": PLUGIN,
            home / "tests" / f"test_{module}.py": PACKAGE_TEST + test,
        },
        plugins,
        force,
        distribution=distribution,
        module=module,
    )


def new_template(name: str, folder: Path, plugins: Plugins, force: bool = False) -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`; both or, if one may not be written, neither.

    Raises:
        FasttuneError: the name is not valid or taken, or a file exists and `force` is not set.
    """
    files = {folder / f"{name}.py": PLUGIN, folder / f"test_{name}.py": TEST}
    return _write(name, files, plugins, force)


def new_format(name: str, folder: Path, plugins: Plugins, force: bool = False) -> Path:
    """Write NAME.yaml, a format without Python, into `folder`.

    Raises:
        FasttuneError: as `new_template`.
    """
    return _write(name, {folder / f"{name}.yaml": FORMAT}, plugins, force)[0]


def _write(
    name: str, files: Mapping[Path, str], plugins: Plugins, force: bool, **words: str
) -> list[Path]:
    """Write files, all or none, with the words in their places."""
    if not VALID_NAME.fullmatch(name) or name.startswith("test_") or name == "conftest":
        raise FasttuneError(
            f"'{name}' is no name for a template",
            f"templates new {name}",
            "use a-z, 0-9, _ and -, a letter first and no - or _ last; test_... and conftest are "
            "pytest's",
        )
    ours = [path.resolve() for path in files]
    for taken in _holders(name, plugins):
        if taken.path.resolve() not in ours:
            raise FasttuneError(f"the name '{name}' is taken", str(taken), "choose another name")
    for path in files:
        if path.exists() and not force:
            raise FasttuneError("the file exists", str(path), "choose another name, or add --force")
    constant = re.sub("[^A-Z0-9]+", "_", name.upper())
    for path, text in files.items():
        write_text(path, text.format(name=name, constant=constant, **words))
    return [*files]


def _holders(name: str, plugins: Plugins) -> list[Provider]:
    """Who holds a name: a template's and a plugin's both collide, the file is named after it."""
    holders = [plugins.templates[name][1]] if name in plugins.templates else []
    return holders + ([plugins.providers[name]] if name in plugins.providers else [])
