"""Find plugins, and load each one by itself.

A plugin is code that you installed or named: a file beside a config or in a run is never executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import pluggy

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import write_json
from fasttune.formats.files import formats_in
from fasttune.plugins import hookspecs
from fasttune.plugins.registry import Loader, Plugins, Provider, plugin_files

log = logging.getLogger(__name__)

GROUP = "fasttune"


def load_plugins(
    plugins_dir: Path | None = None, config: Path | None = None, files: Sequence[Path] = ()
) -> Plugins:
    """Load the installed plugins, then `files`, those that were added, and the plugins folders.

    FASTTUNE_PLUGINS, a comma-separated list of plugin names, restricts what is loaded. YAML formats
    come from formats/ of the working folder and beside `config`.

    Raises:
        FasttuneError: a file or folder that is named does not exist; two plugins have one name; or
            FASTTUNE_PLUGINS names a plugin that does not exist.
    """
    plugins = _empty()
    chosen = [n.strip() for n in os.environ.get("FASTTUNE_PLUGINS", "").split(",") if n.strip()]
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    candidates: list[tuple[str, str, Loader]] = [
        (point.name, _origin(point), partial(_load_entry_point, point)) for point in points
    ]
    named = [_require_file(file, "--plugin ") for file in files]
    paths = [*named, *added_plugins(), *_in_folders(plugins_dir)]
    installed = {Path(origin).resolve() for _, origin, _ in candidates}
    for file in dict.fromkeys(path.resolve() for path in paths):
        if file not in installed:
            candidates.append((file.stem, str(file), partial(_load_file, file)))
    for name, path, load in candidates:
        if not chosen or name in chosen:
            if first := plugins.providers.get(name):
                raise FasttuneError(
                    f"two plugins are called '{name}'",
                    f"{first}\n{name} ({path})",
                    "rename one, or remove it",
                )
            plugins.add(name, path, load)
    names = sorted({name for name, _, _ in candidates})
    if unknown := [name for name in chosen if name not in names]:
        raise FasttuneError(
            f"no plugin is called '{unknown[0]}'",
            "environment variable FASTTUNE_PLUGINS",
            did_you_mean(unknown[0], names),
        )
    plugins.folders = [Path(), *([config.parent] if config else [])]
    plugins.formats = formats_in(plugins.folders)
    return plugins


def installed_plugins(
    plugins_dir: Path | None = None, config: Path | None = None, files: Sequence[Path] = ()
) -> Plugins:
    """As `load_plugins`; a plugin that fails is logged and left out."""
    loaded = load_plugins(plugins_dir, config, files)
    loaded.provided()  # asks every plugin for what it has, which may add problems
    for problem in loaded.problems:
        log.warning(
            "warning: plugin %s is not loaded: %s\n  %s", problem.name, problem.error, problem.path
        )
    return loaded


def load_plugin(path: str | Path) -> Plugins:
    """Load a single plugin file and nothing else, to check it.

    Raises:
        FasttuneError: the file does not exist or does not load.
    """
    path = Path(path)
    file, plugins = _require_file(path).resolve(), _empty()
    plugins.add(path.stem, str(file), partial(_load_file, file))
    plugins.provided()  # collecting may add problems
    if plugins.problems:
        raise FasttuneError("the plugin does not load", str(path), plugins.problems[0].error)
    return plugins


def added_plugins() -> list[Path]:
    """The plugin files that this user added."""
    file = user_config_dir() / "plugins.json"
    if not file.is_file():
        return []
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return [Path(str(path)) for path in list(listed)]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FasttuneError(
            "the list of added plugins is damaged", str(file), "delete it, and add them again"
        ) from error


def add_plugin(path: Path) -> None:
    """Load a plugin file with every command of this user from now on.

    Raises:
        FasttuneError: the file does not exist or does not load.
    """
    load_plugin(path)
    _keep_list([*added_plugins(), path.resolve()])


def remove_plugin(path: Path) -> None:
    """Take a plugin file off the list; the file itself stays.

    Raises:
        FasttuneError: it is not on the list.
    """
    listed = added_plugins()
    if path.resolve() not in listed:
        names = ", ".join(map(str, listed)) or "none"
        raise FasttuneError("this plugin was not added", str(path), f"added are: {names}")
    _keep_list([each for each in listed if each != path.resolve()])


def _keep_list(paths: Sequence[Path]) -> None:
    write_json(user_config_dir() / "plugins.json", list(dict.fromkeys(map(str, paths))))


def _empty() -> Plugins:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return Plugins(manager)


def _in_folders(plugins_dir: Path | None) -> Iterator[Path]:
    folders = {
        "--plugins-dir": plugins_dir,
        "FASTTUNE_PLUGINS_DIR": os.environ.get("FASTTUNE_PLUGINS_DIR"),
    }
    for origin, folder in folders.items():
        if folder:
            if not Path(folder).is_dir():
                raise FasttuneError(
                    "no such plugins folder", f"{origin}: {folder}", "give a folder of .py files"
                )
            yield from plugin_files(Path(folder))
    yield from plugin_files(user_config_dir() / "plugins")


def _require_file(file: Path, option: str = "") -> Path:
    if not file.is_file() or file.suffix != ".py":
        raise FasttuneError("no such plugin file", f"{option}{file}", "give a .py file")
    return file


def user_config_dir() -> Path:
    """The platform's folder for the settings of a user."""
    from typer import get_app_dir

    return Path(get_app_dir("fasttune"))


def _load_entry_point(point: EntryPoint) -> tuple[ModuleType, Provider]:
    module = point.load()
    if not isinstance(module, ModuleType):
        raise TypeError(f"the entry point must name a module, and {point.value} is none")
    distribution = (point.dist.name, point.dist.version) if point.dist else ()
    return module, Provider(point.name, Path(inspect.getfile(module)), *distribution)


def _origin(point: EntryPoint) -> str:
    """The file of an entry point that may not load, found without running it."""
    try:
        spec = importlib.util.find_spec(point.module)
    except (Exception, SystemExit):  # finding a submodule imports its package
        spec = None
    return (spec and spec.origin) or point.value


def _load_file(file: Path) -> tuple[ModuleType, Provider]:
    # The path is part of the module's name: two folders may each hold a mine.py.
    unique = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"fasttune_file_{file.stem}_{unique}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where inspect looks for the code of its classes
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module, Provider(file.stem, file)
