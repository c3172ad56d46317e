"""The loaded plugins: what each one provides, and where everything came from."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import require_name, sha256
from fasttune.plugins.attributes import place_of_thing, wrong_attribute
from fasttune.plugins.exporter import Exporter
from fasttune.plugins.guard import LOADING, Place, PluginError, call, described, short
from fasttune.plugins.identity import Identity, rendering_hash, require_repeatable
from fasttune.plugins.metric import Metric
from fasttune.plugins.template import Template
from fasttune.plugins.trust import Ask


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
    """Everything that was loaded, by name, and everything that was not, with the reason.

    Attributes:
        trust: whether a plugin that a run keeps may run, or who asks a person.
    """

    manager: pluggy.PluginManager
    providers: dict[str, Provider] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    trust: bool | Ask = False

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
        """The template of that name, tried on the probe rows.

        Raises:
            FasttuneError: there is none; the hint names the closest one.
            PluginError: it does not give text, or another one at each call, or never ends.
        """
        template = self.untried(name)
        if name not in self.tried:
            require_repeatable(template)
            self.tried.add(name)
        return template

    def untried(self, name: str) -> Template:
        """The template of that name as it is, for who will check it.

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
        except PluginError as error:
            what = f"template '{name}' fails"
            raise FasttuneError(
                error.message.replace(what, f"{what} on a probe row", 1),
                f"{provider}\n{error.where}",
                f"run: fasttune templates check {name}",
            ) from error
        return Identity(
            name=name,
            provider=provider.name,
            distribution=provider.distribution,
            version=provider.version,
            path=str(provider.path),
            source=sha256(_source(template, provider)),
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
                made = _asked(implementation, provider, _callbacks, run=run)
            except Exception as error:
                raise FasttuneError(
                    f"plugin '{provider.name}' fails in training_callbacks: "
                    f"{_reason(error, str(provider.path))}",
                    str(provider),
                    "fix it, or leave it out with FASTTUNE_PLUGINS=name,name",
                ) from error
            callbacks += [guarded_callback(callback, provider) for callback in made]
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
                things = _asked(implementation, provider, partial(_of_kind, kind))
                named = [(thing.name, thing) for thing in things]
            except Exception as error:
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

        def registered() -> Provider:
            module, provider = load()
            self.manager.register(module, name=name)
            self.manager.check_pending()
            return provider

        what = f"plugin '{name}'"
        try:
            require_name(name, "a plugin", path)
            provider = call(load, what, registered, seconds=LOADING, at=Place(path))
        except Exception as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            self._failed(name, path, error)
            return
        self.providers[name] = provider


def _asked(
    implementation: pluggy.HookImpl,
    provider: Provider,
    check: Callable[[str, Sequence[Any]], None],
    **arguments: Any,
) -> list[Any]:
    """What one plugin gives to one hook, checked."""

    def asked() -> list[Any]:
        name = implementation.function.__name__
        found: Any = implementation.function(*(arguments[each] for each in implementation.argnames))
        if found is None:
            raise TypeError(f"{name} gave nothing; return a list")
        things = list(found)
        check(name, things)
        return things

    what, at = f"plugin '{provider.name}'", Place(str(provider.path))
    things: list[Any] = call(implementation, what, asked, seconds=LOADING, at=at)
    return things


def _of_kind(kind: type, hook: str, things: Sequence[Any]) -> None:
    for thing in things:
        if not isinstance(thing, kind):
            raise TypeError(f"{hook} gave {short(thing)}, which is no {kind.__name__}")
        if wrong := wrong_attribute(thing):
            named = short(getattr(thing, "name", type(thing).__name__))
            message = f"the {kind.__name__.lower()} {named}: {wrong}"
            raise PluginError(message, str(place_of_thing(thing)))


def _callbacks(hook: str, things: Sequence[Any]) -> None:
    if not things:
        return
    from transformers import TrainerCallback

    for thing in things:
        if not isinstance(thing, TrainerCallback):
            raise TypeError(f"{hook} gave {short(thing)}, which is no TrainerCallback")


def guarded_callback(callback: Any, provider: Provider) -> Any:
    """A callback with every event called through the guard, for as long as it takes."""
    what, at = f"a callback of plugin '{provider.name}'", Place(str(provider.path))

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def event(*arguments: Any, **named: Any) -> Any:
            function = partial(method, *arguments, **named)
            passes = (FasttuneError, OSError)
            return call(callback, what, function, seconds=math.inf, at=at, passes=passes)

        return event

    for name in dir(callback):
        if name.startswith("on_"):
            setattr(callback, name, guarded(getattr(callback, name)))
    return callback


def _source(template: Template, provider: Provider) -> Path:
    """The file that defines a template."""
    try:
        return Path(inspect.getfile(type(template)))
    except TypeError:  # its class was made by a program
        return provider.path


def _reason(error: BaseException, path: str) -> str:
    """The error in one line, with the line of the plugin's file where it came up."""
    if isinstance(error, PluginError) and not error.raised:
        where = error.where.removeprefix(f"{path}, ")
        return f"{error.message} ({where})" if where else error.message
    error = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == path]
    return described(error) + (f" (line {lines[-1]})" if lines else "")
