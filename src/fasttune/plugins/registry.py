"""The loaded plugins: what each one provides, and where everything came from."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.plugins.exporter import Exporter
from fasttune.plugins.identity import Identity, rendering_hash
from fasttune.plugins.metric import Metric
from fasttune.plugins.template import Template


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
