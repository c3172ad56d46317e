"""A new template: a working plugin file and its test, a package of both, or YAML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader

from fasttune.errors import FasttuneError
from fasttune.files import write_text
from fasttune.plugins.registry import Plugins

VALID_NAME = re.compile(r"(?!test_|conftest$)[a-z]([a-z0-9_-]{0,60}[a-z0-9])?")
FILES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "scaffold_files"), keep_trailing_newline=True
)


@dataclass(frozen=True)
class Scaffold:
    """New files, and what to do with them.

    Attributes:
        next: what a command is for, as "check it" -> the command.
    """

    files: list[Path]
    next: dict[str, str]


def scaffold(
    name: str,
    form: Literal["plugin", "package", "yaml"],
    folder: Path | None,
    plugins: Plugins,
    force: bool = False,
) -> Scaffold:
    """Write a new template as a plugin file with its test, as a package of both, or as YAML.

    Args:
        folder: by default plugins, the working folder for a package, and formats for YAML.

    Raises:
        FasttuneError: the name is not valid or taken, or a file exists and `force` is not set;
            then nothing is written.
    """
    distribution = f"fasttune-{name.replace('_', '-')}"
    check, run = ("fasttune", "templates", "check"), ("fasttune", "run")
    rows = ("--data", "rows.jsonl")
    commands: dict[str, tuple[object, ...]]
    module = distribution.replace("-", "_")
    if form == "package":
        home = (folder or Path()) / distribution
        files = {
            home / "pyproject.toml": "pyproject.toml",
            home / "README.md": "README.md",
            home / "src" / f"{module}.py": "plugin.py",
            home / "tests" / f"test_{module}.py": "test.py",
        }
        commands = {
            "install it": ("pip", "install", "-e", home),
            "check it": (*check, name),
            "test it": ("pytest", home),
        }
    elif form == "yaml":
        file = (folder or Path("formats")) / f"{name}.yaml"
        use = name if file.parent == Path("formats") else file
        files = {file: "format.yaml"}
        commands = {
            "check it": (*check, file),
            "use it": (*run, "--template", use, *rows),
        }
    else:
        folder = folder or Path("plugins")
        plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
        files = {plugin: "plugin.py", test: "test.py"}
        commands = {
            "check it": (*check, plugin),
            "test it": ("pytest", test),
            "use it": (*run, "--plugin", plugin, "--template", name, *rows),
            "always": ("fasttune", "plugins", "add", plugin),
        }
    _check(name, files, plugins, force)
    words = {"name": name, "form": form, "distribution": distribution, "module": module}
    words["constant"] = re.sub("[^A-Z0-9]+", "_", name.upper())
    for path, file_name in files.items():
        write_text(path, FILES.get_template(f"{file_name}.jinja").render(words))
    lines = {purpose: shlex.join(map(str, command)) for purpose, command in commands.items()}
    return Scaffold([*files], lines)


def _check(name: str, files: Iterable[Path], plugins: Plugins, force: bool) -> None:
    if not VALID_NAME.fullmatch(name):
        raise FasttuneError(
            f"'{name}' is no name for a template",
            f"templates new {name}",
            "use at most 62 of a-z, 0-9, _ and -; start with a letter and do not end with - or _; "
            "test_... and conftest are names for pytest",
        )
    holders = [plugins.templates[name][1]] if name in plugins.templates else []
    holders += [plugins.providers[name]] if name in plugins.providers else []
    ours = [path.resolve() for path in files]
    for holder in holders:  # the files are named after the template, so a plugin's name counts too
        if holder.path.resolve() not in ours:
            raise FasttuneError(f"the name '{name}' is taken", str(holder), "choose another name")
    for path in files:
        if path.exists() and not force:
            raise FasttuneError("the file exists", str(path), "choose another name, or add --force")
