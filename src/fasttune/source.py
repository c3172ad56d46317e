"""What answers: a run, or a base model under a template."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.config import DataConfig, ModelConfig, RunConfig, load_config, parse_override
from fasttune.data.load import load_rows
from fasttune.data.rows import Rows
from fasttune.data.sources import columns_of
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.formats.template import Template
from fasttune.models.base import require_trained
from fasttune.models.tokenizer import require_model
from fasttune.models.unsloth import import_unsloth_on_gpu
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run, find_trained, is_run
from fasttune.runs.resume import usable

if TYPE_CHECKING:
    from fasttune.generation.generator import Generator


log = logging.getLogger(__name__)

READING = ("data.limit", "data.skip_bad_rows", "data.turns")


@dataclass(frozen=True)
class Source:
    """A run or a base model, before it is loaded.

    Attributes:
        template: with the system text that was asked for, or the run's own.
        adapter: None for a base model, as `run`.
    """

    model: ModelConfig
    template: Template
    adapter: Path | None
    plugins: Plugins
    run: Run | None = None

    def load(self) -> Generator:
        import_unsloth_on_gpu()  # before transformers and PEFT
        from fasttune.generation.generator import Generator

        return Generator.load(self.model, self.template, self.adapter)

    def read(
        self,
        file: str | Path | None,
        columns: Mapping[str, str] | None = None,
        settings: Sequence[str] = (),
        labelled: bool = False,
    ) -> Rows:
        """Read the rows of a file to answer. They need only what a prompt is made of and, if they
        are `labelled`, the reference response.

        Args:
            file: None for the rows that the run holds out.
            columns: our column -> theirs; if empty, the run's own, as far as the file has them.
            settings: KEY=VALUE of `READING`.
        """
        if file is None:
            if settings:
                what = "these settings are for reading a file"
                raise FasttuneError(what, " ".join(settings), "give the file, too")
            if self.run and (held_out := self.run.held_out()):
                return held_out
            raise FasttuneError(
                "there are no rows",
                f"{self.run.folder if self.run else self.model.name} holds no rows out",
                "give a file of rows",
            )
        changes = [parse_override(setting) for setting in settings]
        for change in changes:
            if change.key not in READING:
                hint = did_you_mean(change.key, READING)
                what = f"'{change.key}' is no setting for reading rows to answer"
                raise FasttuneError(what, change.origin, hint)
        columns = columns or self.own_columns(str(file))
        turns = self.run.config.data.turns if self.run else "all"
        data = load_config(None, changes, RunConfig(data=DataConfig(turns=turns))).data
        _, response = self.template.response
        unneeded = {*self.template.targets.values()} - ({response} if labelled else set())
        needed = [column for column in self.template.required if column not in unneeded]
        loaded = load_rows(
            str(file), self.template, columns, "train", data.limit, needed, take=data.turns
        )
        loaded.require_clean(data.skip_bad_rows)
        if loaded.bad_rows:
            log.warning("warning: %s: %d rows are skipped", file, loaded.bad_rows)
        return loaded.rows

    def own_columns(self, file: str) -> dict[str, str]:
        """The columns that the run was trained with, unless the file lacks all of theirs."""
        data = self.run.config.data if self.run else DataConfig()
        if not (mappings := [m for m in (data.columns, *(s.columns for s in data.sources)) if m]):
            return {}
        names = columns_of(file)
        for mapping in mappings:
            if taken := {ours: theirs for ours, theirs in mapping.items() if theirs in names}:
                shown = ", ".join(f"{ours}={theirs}" for ours, theirs in taken.items())
                log.info("columns as in the run: %s", shown)
                return taken
        return {}


def find_source(
    name: str | Run,
    template: str | None = None,
    system: str | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Source:
    """What a name stands for: a run (folder, name or "last"), the folder of a checkpoint, or a base
    model (folder or Hub name). A run that did not finish stands for its newest checkpoint.

    Args:
        template: for a base model, by default reasoning; a run has its own.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: there is no such run or template, the run has no adapter, or only the Hub has
            the model and cannot be reached.
    """
    plugins = plugins or installed_plugins()
    if isinstance(name, str) and not is_run(name):
        require_model(name)
        chosen = plugins.template(template or "reasoning").with_system(system)
        return Source(ModelConfig(name=name), chosen, None, plugins)
    run = usable(name) if isinstance(name, Run) else find_trained(name)
    trained = run.manifest["template"]["name"]
    if template not in (None, trained, run.config.template):
        raise FasttuneError(
            f"the run was trained with the template '{trained}'",
            f"--template {template}",
            "leave out --template",
        )
    own = run.template(plugins, force)
    require_trained(run, force)
    return Source(run.model_config, own.with_system(system), run.adapter, plugins, run)


def load(
    name: str | Run,
    template: str | None = None,
    system: str | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Generator:
    """A model that answers in a format; arguments and errors are those of `find_source`."""
    return find_source(name, template, system, plugins, force).load()
