"""Finding plugins, loading each one by itself, and knowing where everything came from."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fasttune import hookspecs
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.export import Exporter
from fasttune.metrics import Metric
from fasttune.template import Template, rendering_hash

GROUP = "fasttune"


@dataclass(frozen=True)
class Provider:
    """Where a plugin came from: its name, file, and for an installed one its distribution."""

    name: str
    path: Path
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}" if self.distribution else "folder"
        return f"{self.name} ({origin}, {self.path})"


@dataclass(frozen=True)
class Problem:
    """A plugin that could not be loaded, and why."""

    name: str
    path: str
    error: str


@dataclass(frozen=True)
class Identity:
    """What pins a template down: saved with every adapter, compared before generating or resuming.

    Attributes:
        source: SHA-256 of the file that defines the template.
        rendering: `rendering_hash` of the template; this alone decides whether two templates agree.
    """

    name: str
    provider: str
    distribution: str
    version: str
    path: str
    source: str
    rendering: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Plugins:
    """Everything that was loaded, by name, and everything that was not, with the reason."""

    manager: pluggy.PluginManager
    providers: dict[str, Provider] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def templates(self) -> dict[str, tuple[Template, Provider]]:
        return self._collect("register_templates", Template)

    @cached_property
    def metrics(self) -> dict[str, tuple[Metric, Provider]]:
        return self._collect("register_metrics", Metric)

    @cached_property
    def exporters(self) -> dict[str, tuple[Exporter, Provider]]:
        return self._collect("register_exporters", Exporter)

    def template(self, name: str) -> Template:
        """The template of that name.

        Raises:
            FasttuneError: there is none; the hint names the closest one.
        """
        if name not in self.templates:
            broken = "".join(f"\nnot loaded: {p.name} ({p.path}): {p.error}" for p in self.problems)
            raise FasttuneError(
                f"no template is called '{name}'",
                broken.strip(),
                did_you_mean(name, [*self.templates]),
            )
        return self.templates[name][0]

    def identity(self, name: str) -> Identity:
        """The identity of a loaded template.

        Raises:
            FasttuneError: the template fails on one of the probe rows.
        """
        template = self.template(name)
        provider = self.templates[name][1]
        try:
            rendering = rendering_hash(template)
        except Exception as error:
            raise FasttuneError(
                f"template '{name}' fails on a probe row: {type(error).__name__}: {error}",
                str(provider),
                f"run: fasttune templates check {name}",
            ) from error
        return Identity(
            name=name,
            provider=provider.name,
            distribution=provider.distribution,
            version=provider.version,
            path=str(provider.path),
            source=hashlib.sha256(Path(inspect.getfile(type(template))).read_bytes()).hexdigest(),
            rendering=rendering,
        )

    def training_callbacks(self, run: Path) -> list[Any]:
        """The callbacks of all plugins for one run.

        Raises:
            FasttuneError: a plugin fails to make its callbacks.
        """
        callbacks: list[Any] = []
        for implementation in self.manager.hook.training_callbacks.get_hookimpls():
            provider = self.providers[implementation.plugin_name]
            try:
                callbacks += _call(implementation, run=run)
            except Exception as error:
                raise FasttuneError(
                    f"plugin '{provider.name}' fails in training_callbacks: "
                    f"{_reason(error, str(provider.path))}",
                    str(provider),
                    "fix it, or leave it out with FASTTUNE_PLUGINS=name,name",
                ) from error
        return callbacks

    def provided(self) -> dict[str, list[str]]:
        """Provider name -> what it provides, as "template reasoning"."""
        found: dict[str, list[str]] = {name: [] for name in self.providers}
        for kind, things in (
            ("template", self.templates),
            ("metric", self.metrics),
            ("exporter", self.exporters),
        ):
            for thing, (_, provider) in things.items():
                found[provider.name].append(f"{kind} {thing}")
        for implementation in self.manager.hook.training_callbacks.get_hookimpls():
            found[implementation.plugin_name].append("training callbacks")
        return found

    def _collect(self, hook: str, kind: type) -> dict[str, tuple[Any, Provider]]:
        """Call a registering hook plugin by plugin, so that one failing does not stop the rest."""
        found: dict[str, tuple[Any, Provider]] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            provider = self.providers[implementation.plugin_name]
            try:
                things = _call(implementation)
                wrong = [thing for thing in things if not isinstance(thing, kind)]
                if wrong:
                    raise TypeError(f"{hook} gave {wrong[0]!r}, which is no {kind.__name__}")
                named = [(thing.name, thing) for thing in things]
            except (Exception, SystemExit) as error:
                self._failed(provider.name, str(provider.path), error)
                continue
            for name, thing in named:
                if name in found:
                    raise FasttuneError(
                        f"the {kind.__name__.lower()} '{name}' is provided twice",
                        f"{found[name][1]}\n{provider}",
                        "rename one, or choose with FASTTUNE_PLUGINS=name,name",
                    )
                found[name] = (thing, provider)
        return found

    def _failed(self, name: str, path: str, error: BaseException) -> None:
        self.problems.append(Problem(name, path, _reason(error, path)))

    def add(self, name: str, path: str, load: Callable[[], tuple[ModuleType, Provider]]) -> None:
        """Load and register one plugin; whatever goes wrong is kept as its problem."""
        try:
            module, provider = load()
            self.manager.register(module, name=name)
            self.manager.check_pending()
        except (Exception, SystemExit) as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            self._failed(name, path, error)
            return
        self.providers[name] = provider


def load_plugins(plugins_dir: Path | None = None, config: Path | None = None) -> Plugins:
    """Load the installed plugins, then the .py files of the folders, in this order: `plugins_dir`,
    FASTTUNE_PLUGINS_DIR, plugins/ beside `config`, and plugins/ in the user's config folder.

    FASTTUNE_PLUGINS, a comma-separated list of plugin names, restricts what is loaded.

    Raises:
        FasttuneError: `plugins_dir` or FASTTUNE_PLUGINS_DIR is no folder, two plugins have one
            name, or FASTTUNE_PLUGINS names a plugin that does not exist.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager)
    chosen = [n.strip() for n in os.environ.get("FASTTUNE_PLUGINS", "").split(",") if n.strip()]
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    known = {point.name for point in points}
    for point in points:
        if not chosen or point.name in chosen:
            _refuse_second(plugins, point.name, f"{point.name} ({_origin(point)})")
            plugins.add(point.name, _origin(point), lambda point=point: _load_entry_point(point))  # type: ignore[misc]
    tried = {provider.path.resolve() for provider in plugins.providers.values()}
    tried |= {Path(problem.path).resolve() for problem in plugins.problems}
    files = [f.resolve() for folder in _folders(plugins_dir, config) for f in _plugin_files(folder)]
    for file in dict.fromkeys(files):
        known.add(file.stem)
        if (not chosen or file.stem in chosen) and file not in tried:
            _refuse_second(plugins, file.stem, f"{file.stem} (folder, {file})")
            plugins.add(file.stem, str(file), lambda file=file: _load_file(file))  # type: ignore[misc]
    if unknown := [name for name in chosen if name not in known]:
        raise FasttuneError(
            f"no plugin is called '{unknown[0]}'",
            "environment variable FASTTUNE_PLUGINS",
            did_you_mean(unknown[0], sorted(known)),
        )
    return plugins


def load_file(path: Path) -> Plugins:
    """Load a single plugin file and nothing else, for checking it.

    Raises:
        FasttuneError: the file does not exist or does not load.
    """
    if not path.is_file():
        raise FasttuneError("no such plugin file", str(path), "give the path of a .py file")
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    plugins = Plugins(manager)
    plugins.add(path.stem, str(path.resolve()), lambda: _load_file(path.resolve()))
    plugins.provided()  # collecting may add problems
    if plugins.problems:
        raise FasttuneError("the plugin does not load", str(path), plugins.problems[0].error)
    return plugins


def _folders(plugins_dir: Path | None, config: Path | None) -> Iterable[Path]:
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
            yield folder
    if config is not None and (config.parent / "plugins").is_dir():
        yield config.parent / "plugins"
    user = user_config_dir() / "plugins"
    if user.is_dir():
        yield user


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


def _load_file(file: Path) -> tuple[ModuleType, Provider]:
    # The path is part of the module's name: two folders may each hold a mine.py.
    unique = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"fasttune_folder_{file.stem}_{unique}"
    spec = importlib.util.spec_from_file_location(name, file)
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


def _call(implementation: pluggy.HookImpl, **arguments: Any) -> list[Any]:
    """What one plugin gives to one hook."""
    found: Any = implementation.function(*(arguments[name] for name in implementation.argnames))
    if found is None:
        raise TypeError(f"{implementation.function.__name__} gave nothing; return a list")
    return list(found)


def _reason(error: BaseException, path: str) -> str:
    """The error in one line, with the line of the plugin's file where it came up."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
