"""Finding plugins, and loading each one by itself."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType

import pluggy

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.plugins import hookspecs
from fasttune.plugins.registry import Plugins, Provider
from fasttune.plugins.trust import Ask, refuse_writable, require_consent

GROUP = "fasttune"
BESIDE = "beside the config"
FOLDER_MODULE = "fasttune_folder_"
NOT_HELPERS = ("__main__", FOLDER_MODULE)
"""How modules are named that a plugin in a folder has not imported: the program, other plugins."""


def load_plugins(
    plugins_dir: Path | None = None,
    config: Path | None = None,
    files: Sequence[Path] = (),
    trust: bool | Ask = False,
) -> Plugins:
    """Load the installed plugins, then `files`, then the .py files of the plugins folders.

    These are, in this order: `plugins_dir`, FASTTUNE_PLUGINS_DIR, plugins/ beside `config`, and
    plugins/ in the user's config folder. FASTTUNE_PLUGINS, a comma-separated list of plugin names,
    restricts what is loaded.

    Args:
        trust: whether what is beside `config`, or in a run, may run, or who asks a person; an
            earlier consent to the same files stands. Nothing else needs one.

    Raises:
        FasttuneError: a file or folder that is named does not exist, or others may write to it; the
            files beside `config` have no consent; two plugins have one name; or FASTTUNE_PLUGINS
            names a plugin that does not exist.
    """
    plugins = _empty()
    plugins.trust = trust
    chosen = _chosen()
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    known = {point.name for point in points}
    for point in points:
        if not chosen or point.name in chosen:
            _refuse_second(plugins, point.name, f"{point.name} ({_origin(point)})")
            plugins.add(point.name, _origin(point), lambda point=point: _load_entry_point(point))  # type: ignore[misc]
    agreed: set[Path] = set()
    tried = {provider.path.resolve() for provider in plugins.providers.values()}
    tried |= {Path(problem.path).resolve() for problem in plugins.problems}
    places: list[tuple[Path, Path | None]] = [(_given(file), None) for file in files]
    for folder, origin in _folders(plugins_dir, config):
        places += [(path, folder if origin == BESIDE else None) for path in _plugin_files(folder)]
    for path, beside in places:
        file = path.resolve()
        known.add(file.stem)
        if (chosen and file.stem not in chosen) or file in tried:
            continue
        tried.add(file)
        for each in dict.fromkeys((path.parent.resolve(), file.parent, file)):
            refuse_writable(each)
        if beside is not None and beside not in agreed:
            require_consent(beside, _agreements(), trust)
            agreed.add(beside)
        _refuse_second(plugins, file.stem, f"{file.stem} (folder, {file})")
        plugins.add(file.stem, str(file), lambda file=file: _load_file(file))  # type: ignore[misc]
    if unknown := [name for name in chosen if name not in known]:
        raise FasttuneError(
            f"no plugin is called '{unknown[0]}'",
            "environment variable FASTTUNE_PLUGINS",
            did_you_mean(unknown[0], sorted(known)),
        )
    return plugins


def load_plugin(path: Path) -> Plugins:
    """Load a single plugin file and nothing else, for checking it.

    Raises:
        FasttuneError: the file does not exist or does not load.
    """
    if not path.is_file():
        raise FasttuneError("no such plugin file", str(path), "give the path of a .py file")
    plugins = _empty()
    plugins.add(path.stem, str(path.resolve()), lambda: _load_file(path.resolve()))
    plugins.provided()  # collecting may add problems
    if plugins.problems:
        raise FasttuneError("the plugin does not load", str(path), plugins.problems[0].error)
    return plugins


def keep_plugin(provider: Provider, folder: Path) -> None:
    """Copy the source of a plugin into a folder: its file as NAME.py, and of one that was loaded
    from a folder what it imported from there."""
    shutil.copyfile(provider.path, folder / f"{provider.name}.py")
    if provider.distribution:
        return
    home = provider.path.resolve().parent
    for name, module in [*sys.modules.items()]:
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if file.suffix == ".py" and home in file.parents and not name.startswith(NOT_HELPERS):
            copy = folder / file.relative_to(home)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def agree(folder: Path) -> None:
    """Note that a person agrees to the .py files in and below a folder."""
    require_consent(folder, _agreements(), trust=True)


def with_kept(plugins: Plugins, name: str, folder: Path) -> Plugins:
    """The plugins, and the one of that name in a folder of its own, where a run keeps it; it takes
    the place of a loaded one of that name.

    Raises:
        FasttuneError: a person has not agreed to what is in the folder, or others may write there.
    """
    if (chosen := _chosen()) and name not in chosen:
        return plugins
    file = folder.resolve() / f"{name}.py"
    for each in (file.parent, file):
        refuse_writable(each)
    require_consent(folder, _agreements(), plugins.trust, "plugins kept in the run")
    found = _empty()
    found.trust = plugins.trust
    found.problems += [problem for problem in plugins.problems if problem.name != name]
    for other, provider in plugins.providers.items():
        if other != name:
            found.manager.register(plugins.manager.get_plugin(other), name=other)
            found.providers[other] = provider
    found.add(name, str(file), lambda: _load_file(file))
    return found


def _chosen() -> list[str]:
    """The plugins that are to be loaded; none is all."""
    names = os.environ.get("FASTTUNE_PLUGINS", "").split(",")
    return [name.strip() for name in names if name.strip()]


def _agreements() -> Path:
    return user_config_dir() / "trusted-plugins.json"


def _empty() -> Plugins:
    """No plugins yet, only the hooks that they may implement."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return Plugins(manager)


def _folders(plugins_dir: Path | None, config: Path | None) -> Iterable[tuple[Path, str]]:
    """The folders to look into, each with what names it."""
    from_environment = os.environ.get("FASTTUNE_PLUGINS_DIR", "")
    for folder, origin in (
        (plugins_dir, "--plugins-dir"),
        (Path(from_environment) if from_environment else None, "FASTTUNE_PLUGINS_DIR"),
    ):
        if folder is not None:
            if not folder.is_dir():
                raise FasttuneError(
                    "no such plugins folder", f"{origin}: {folder}", "give a folder of .py files"
                )
            yield folder, origin
    for folder, origin in (
        (config and config.parent / "plugins", BESIDE),
        (user_config_dir() / "plugins", "the user's config folder"),
    ):
        if folder is not None and folder.is_dir():
            yield folder, origin


def _given(file: Path) -> Path:
    """A plugin file that is named by itself."""
    if not file.is_file() or file.suffix != ".py":
        raise FasttuneError("no such plugin file", f"--plugin {file}", "give a .py file")
    return file


def _plugin_files(folder: Path) -> list[Path]:
    """The files of a folder that are plugins; helpers ("_...") and tests may live beside them."""
    files = sorted(folder.glob("*.py"))
    return [f for f in files if not f.name.startswith(("_", "test_")) and f.name != "conftest.py"]


def _refuse_second(plugins: Plugins, name: str, second: str) -> None:
    if first := plugins.providers.get(name):
        raise FasttuneError(
            f"two plugins are called '{name}'", f"{first}\n{second}", "rename one, or remove it"
        )


def user_config_dir() -> Path:
    """The folder for a person's own settings, by the platform's custom."""
    from typer import get_app_dir

    return Path(get_app_dir("fasttune"))


def _load_entry_point(point: EntryPoint) -> tuple[ModuleType, Provider]:
    module = point.load()
    if not isinstance(module, ModuleType):
        raise TypeError(f"the entry point must name a module, and {point.value} is none")
    dist = point.dist
    path = Path(inspect.getfile(module))
    return module, Provider(
        point.name, path, dist.name if dist else "", dist.version if dist else ""
    )


def _origin(point: EntryPoint) -> str:
    """The file of an entry point that may not load, found without running it."""
    try:
        spec = importlib.util.find_spec(point.module)
    except (Exception, SystemExit):  # finding a submodule imports its package
        spec = None
    return (spec and spec.origin) or point.value


class _Source(SourceFileLoader):
    """Runs what the file says: compiled code that lies beside it may be something else."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(file: Path) -> tuple[ModuleType, Provider]:
    # The path is part of the module's name: two folders may each hold a mine.py.
    unique = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"{FOLDER_MODULE}{file.stem}_{unique}"
    if file.suffix != ".py":
        raise ImportError(f"cannot import {file}")
    spec = importlib.util.spec_from_file_location(name, file, loader=_Source(name, str(file)))
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before executing: classes are pickled by `datasets.map`
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module, Provider(file.stem, file)
