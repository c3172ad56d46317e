"""A new template: a working plugin file and its test, a package of both, or YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader

from fasttune.errors import FasttuneError
from fasttune.files import write_text
from fasttune.plugins.registry import Plugins, Provider

VALID_NAME = re.compile(r"[a-z]([a-z0-9_-]{0,60}[a-z0-9])?")

FILES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "scaffold_files"), keep_trailing_newline=True
)


Form = Literal["plugin", "package", "yaml"]


@dataclass(frozen=True)
class Scaffold:
    """New files, and what to do with them.

    Attributes:
        next: what a command is for, as "check it" -> the command.
    """

    files: list[Path]
    next: dict[str, str]


def scaffold(
    name: str, form: Form, folder: Path | None, plugins: Plugins, force: bool = False
) -> Scaffold:
    """Write a new template as a plugin file, as a package or as YAML.

    Args:
        folder: by default plugins, the working folder for a package, and formats for YAML.

    Raises:
        FasttuneError: as `new_template`.
    """
    if form == "package":
        files = new_package(name, folder or Path(), plugins, force)
        home = files[0].parent
        return Scaffold(
            files,
            {
                "install it": f"pip install -e {home}",
                "check it": f"fasttune templates check {name}",
                "test it": f"pytest {home}",
            },
        )
    if form == "yaml":
        file = new_format(name, folder or Path("formats"), plugins, force)
        use = name if file.parent == Path("formats") else file
        return Scaffold(
            [file],
            {
                "check it": f"fasttune templates check {file}",
                "use it": f"fasttune run --template {use} --data rows.jsonl",
            },
        )
    plugin, test = new_template(name, folder or Path("plugins"), plugins, force)
    return Scaffold(
        [plugin, test],
        {
            "check it": f"fasttune templates check {plugin}",
            "test it": f"pytest {test}",
            "use it": f"fasttune run --plugin {plugin} --template {name} --data rows.jsonl",
            "always": f"fasttune plugins add {plugin}",
        },
    )


def new_package(name: str, folder: Path, plugins: Plugins, force: bool = False) -> list[Path]:
    """Write a package of one plugin that pip installs, fasttune-NAME, into `folder`.

    Raises:
        FasttuneError: as `new_template`.
    """
    distribution = f"fasttune-{name.replace('_', '-')}"
    module = distribution.replace("-", "_")
    home = folder / distribution
    files = {
        home / "pyproject.toml": "pyproject.toml",
        home / "README.md": "README.md",
        home / "src" / f"{module}.py": "plugin.py",
        home / "tests" / f"test_{module}.py": "test.py",
    }
    return _write(name, files, plugins, force, distribution=distribution, module=module)


def new_template(name: str, folder: Path, plugins: Plugins, force: bool = False) -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`; both or, if one may not be written, neither.

    Raises:
        FasttuneError: the name is not valid or taken, or a file exists and `force` is not set.
    """
    files = {folder / f"{name}.py": "plugin.py", folder / f"test_{name}.py": "test.py"}
    return _write(name, files, plugins, force)


def new_format(name: str, folder: Path, plugins: Plugins, force: bool = False) -> Path:
    """Write NAME.yaml, a format without Python, into `folder`.

    Raises:
        FasttuneError: as `new_template`.
    """
    return _write(name, {folder / f"{name}.yaml": "format.yaml"}, plugins, force)[0]


def _write(
    name: str, files: Mapping[Path, str], plugins: Plugins, force: bool, **words: str
) -> list[Path]:
    """Write files, all or none.

    Args:
        files: path -> name among the scaffold's files.
        words: for their placeholders, beside the name.
    """
    if not VALID_NAME.fullmatch(name) or name.startswith("test_") or name == "conftest":
        raise FasttuneError(
            f"'{name}' is no name for a template",
            f"templates new {name}",
            "use a-z, 0-9, _ and -; start with a letter and do not end with - or _; pytest takes "
            "test_... and conftest for its own",
        )
    ours = [path.resolve() for path in files]
    for taken in _holders(name, plugins):
        if taken.path.resolve() not in ours:
            raise FasttuneError(f"the name '{name}' is taken", str(taken), "choose another name")
    for path in files:
        if path.exists() and not force:
            raise FasttuneError("the file exists", str(path), "choose another name, or add --force")
    constant = re.sub("[^A-Z0-9]+", "_", name.upper())
    for path, file in files.items():
        template = FILES.get_template(f"{file}.jinja")
        write_text(path, template.render(name=name, constant=constant, **words))
    return [*files]


def _holders(name: str, plugins: Plugins) -> list[Provider]:
    """Who holds a name: a template's and a plugin's both collide, the file is named after it."""
    holders = [plugins.templates[name][1]] if name in plugins.templates else []
    return holders + ([plugins.providers[name]] if name in plugins.providers else [])
