"""The loaded plugins: what each one provides, and where everything came from."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fasttune.errors import FasttuneError, blame, did_you_mean
from fasttune.files import require_name
from fasttune.formats.files import is_format_file, read_format
from fasttune.formats.template import Template
from fasttune.plugins.exporter import Exporter
from fasttune.plugins.metric import Metric, exact_section
from fasttune.records import TemplateFacts


@dataclass(frozen=True)
class Provider:
    """Where something came from: a plugin or a format's file, and its distribution if any."""

    name: str
    path: Path
    distribution: str = ""
    version: str = ""

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}" if self.distribution else "file"

    def __str__(self) -> str:
        return f"{self.name} ({self.origin}, {self.path})"


@dataclass(frozen=True)
class Problem:
    """A plugin or a format's file that did not load, and why."""

    name: str
    path: str
    error: str


Loader = Callable[[], tuple[ModuleType, Provider]]


@dataclass
class Plugins:
    """What was loaded, by name, and what was not, with the reason.

    Attributes:
        formats: YAML files of formats.
        folders: the working folder, and the config's. Plugins there do not run unless they are
            named; the error about an unknown template names them.
    """

    manager: pluggy.PluginManager
    providers: dict[str, Provider] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    formats: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @cached_property
    def templates(self) -> dict[str, tuple[Template, Provider]]:
        templates = self._collect("register_templates", Template)
        for file in self.formats:
            try:
                template = read_format(file)
            except FasttuneError as error:
                problem = f"{error.message} ({error.where})"
                self.problems.append(Problem(file.stem, str(file), problem))
            else:
                _add(templates, template, Provider(file.stem, file), Template)
        return templates

    @cached_property
    def metrics(self) -> dict[str, tuple[Metric, Provider]]:
        return self._collect("register_metrics", Metric)

    def metrics_of(self, *templates: Template) -> list[Metric]:
        """The registered metrics, and one for each section that the templates learn besides the
        response, which `exact` measures."""
        metrics = [metric for metric, _ in self.metrics.values()]
        sections = [s for each in templates for s in each.targets if s != each.response[0]]
        for section in dict.fromkeys(sections):
            metrics.append(exact_section(section, [metric.name for metric in metrics]))
        return metrics

    @cached_property
    def exporters(self) -> dict[str, tuple[Exporter, Provider]]:
        return self._collect("register_exporters", Exporter)

    def template(self, name: str) -> Template:
        """The template of a name or a YAML file."""
        return self.look_up(name)[0]

    def look_up(self, name: str) -> tuple[Template, Provider]:
        """The template of a name or a YAML file, and where it came from.

        Raises:
            FasttuneError: there is none, or the file holds none.
        """
        if is_format_file(name):
            file = Path(name).expanduser()
            return read_format(file), Provider(file.stem, file.absolute())
        if name not in self.templates:
            raise self._unknown(name)
        return self.templates[name]

    def facts(self, name: str) -> TemplateFacts:
        """What a run keeps of a template: its declaration, and the plugin that a computed format
        needs."""
        template, provider = self.look_up(name)
        return {
            "name": template.name,
            "identity": template.identity,
            "declaration": None if template.computed else template.declaration,
            "plugin": provider.name,
            "distribution": provider.distribution,
            "version": provider.version,
            "path": str(provider.path),
        }

    def _unknown(self, name: str) -> FasttuneError:
        lines = [f"not loaded: {p.name} ({p.path}): {p.error}" for p in self.problems]
        hint = did_you_mean(name, [*self.templates])
        if files := _holding(name, self.folders):
            lines.append(f"not loaded: {', '.join(map(str, files))}")
            option = "--template" if is_format_file(files[0].name) else "--plugin"
            hint = f"if it is in {files[0]}, add {option} {files[0]}; {hint}"
        return FasttuneError(f"no template is called '{name}'", "\n".join(lines), hint)

    def training_callbacks(self, run: Path) -> list[Any]:
        """The callbacks of all plugins for one run.

        Raises:
            FasttuneError: a plugin fails to make its callbacks.
        """
        callbacks: list[Any] = []
        for implementation in self.manager.hook.training_callbacks.get_hookimpls():
            provider = self.providers[implementation.plugin_name]
            try:
                function: Callable[..., Any] = implementation.function
                things = list(function(*[run] * len(implementation.argnames)))
                if things:
                    from transformers import TrainerCallback
                for thing in things:
                    if not isinstance(thing, TrainerCallback):
                        raise TypeError(
                            f"it returned {thing!r:.100}, which is not a TrainerCallback"
                        )
            except Exception as error:
                raise blame(
                    error,
                    f"plugin '{provider.name}', training_callbacks",
                    provider.path,
                    str(provider),
                    "fix it, or leave it out with FASTTUNE_PLUGINS=name,name",
                ) from error
            callbacks += things
        return callbacks

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Turn an exception from a plugin's file into an error that names file and line."""
        try:
            yield
        except (FasttuneError, OSError):
            raise
        except Exception as error:
            files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
            for provider in self.providers.values():
                if str(provider.path) in files:
                    raise blame(error, f"plugin '{provider.name}'", provider.path) from error
            raise

    def provided(self) -> dict[str, list[str]]:
        """Provider name -> what it provides, as "template reasoning"."""
        provided: dict[str, list[str]] = {name: [] for name in self.providers}
        kinds = ("template", self.templates), ("metric", self.metrics), ("exporter", self.exporters)
        for kind, things in kinds:
            for thing, (_, provider) in things.items():
                provided.setdefault(provider.name, []).append(f"{kind} {thing}")
        for implementation in self.manager.hook.training_callbacks.get_hookimpls():
            provided[implementation.plugin_name].append("training callbacks")
        return provided

    def _collect(self, hook: str, kind: type[Any]) -> dict[str, tuple[Any, Provider]]:
        """Call a registering hook plugin by plugin, so that one failing does not stop the rest."""
        collected: dict[str, tuple[Any, Provider]] = {}
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            provider = self.providers[implementation.plugin_name]
            try:
                things: list[Any] = list(implementation.function())
                for thing in things:
                    if not isinstance(thing, kind):
                        raise TypeError(f"{hook} returned {thing!r:.100}, not a {kind.__name__}")
                    require_name(thing.name, f"a {kind.__name__.lower()}", "name")
            except (Exception, SystemExit) as error:
                self._failed(provider.name, str(provider.path), error)
                continue
            for thing in things:
                _add(collected, thing, provider, kind)
        return collected

    def _failed(self, name: str, path: str, error: BaseException) -> None:
        blamed = blame(error, "it", Path(path))
        problem = blamed.message.removeprefix("it fails: ")
        where = "" if blamed.where == path else blamed.where.removeprefix(f"{path}, ")
        self.problems.append(Problem(name, path, f"{problem} ({where})" if where else problem))

    def add(self, name: str, path: str, load: Loader) -> None:
        """Load and register one plugin; whatever goes wrong is kept as its problem."""
        try:
            require_name(name, "a plugin", path)
            module, provider = load()
            self.manager.register(module, name=name)
            self.manager.check_pending()
        except (Exception, SystemExit) as error:
            if self.manager.has_plugin(name):
                self.manager.unregister(name=name)
            self._failed(name, path, error)
            return
        self.providers[name] = provider


def _add(collected: dict[str, Any], thing: Any, provider: Provider, kind: type) -> None:
    if thing.name in collected:
        raise FasttuneError(
            f"the {kind.__name__.lower()} '{thing.name}' is provided twice",
            f"{collected[thing.name][1]}\n{provider}",
            "rename one, or choose plugins with FASTTUNE_PLUGINS=name,name",
        )
    collected[thing.name] = (thing, provider)


def plugin_files(folder: Path) -> list[Path]:
    """The files of a folder that are plugins; helpers ("_...") and tests may live beside them."""
    files = sorted(folder.glob("*.py"))
    return [f for f in files if not f.name.startswith(("_", "test_")) and f.name != "conftest.py"]


def _holding(name: str, folders: Sequence[Path]) -> list[Path]:
    """The files in and below the folders that seem to declare a template of that name."""
    files = [file for folder in folders for file in plugin_files(folder)]
    files += [file for folder in folders for file in plugin_files(folder / "plugins")]
    files += [file for folder in folders for file in sorted(folder.glob("*.y*ml"))]
    declaring = []
    for file in {file.resolve(): file for file in files[:200] if file.is_file()}.values():
        with suppress(OSError), file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(2**16)
            if re.search(rf"\bname\s*[=:]\s*[\"']?{re.escape(name)}\b", text):
                declaring.append(file)
    return declaring
