"""What a run will do, worked out without loading a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fasttune.config import RunConfig
from fasttune.data.load import load, shipped
from fasttune.data.rows import ChosenRows
from fasttune.data.split import divide
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.models.tokenizer import resolve_model
from fasttune.plugins.identity import Identity
from fasttune.plugins.registry import Plugins
from fasttune.plugins.template import Row, Template, with_system

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Job:
    """What a run will do, before a model is loaded: settings, template, and checked rows.

    Attributes:
        plugins: for the metrics and the callbacks.
        identity: of the template as it renders now.
        model: the name or folder that will be loaded.
        source: where the rows came from, for messages.
        train: rows to train on, with the run's system text.
        eval: rows held out.
        skipped: number of bad rows left out.
    """

    config: RunConfig
    plugins: Plugins
    template: Template
    identity: Identity
    model: str
    source: str
    train: Sequence[Row]
    eval: Sequence[Row]
    skipped: int

    def __repr__(self) -> str:
        return (
            f"<Job: {self.template.name} on {Path(self.model).name}, {self.source}, "
            f"{len(self.train)} rows to train on, {len(self.eval)} held out>"
        )


def prepare(config: RunConfig, plugins: Plugins) -> Job:
    """Find the template, read and check the rows, and divide them.

    Without `data.train` these are the shipped rows, held-out part included. With it, `data.eval`
    is the held-out part, or `data.eval_fraction` of the rows are, chosen by a hash of the row.

    Raises:
        FasttuneError: for whatever is wrong with template, model name or data.
    """
    template = plugins.template(config.template)
    _check_trackers(config.train.report_to)
    data = config.data
    if data.train is None:
        train_source, eval_source = str(shipped("train")), str(shipped("heldout"))
    else:
        train_source, eval_source = data.train, data.eval or ""
    loaded = load(train_source, template, data.columns, limit=data.limit)
    loaded.require_clean(data.skip_bad_rows)
    skipped = loaded.bad_rows
    if eval_source:
        held_out = load(eval_source, template, data.columns)
        held_out.require_clean(data.skip_bad_rows)
        skipped += held_out.bad_rows
        train_at: Sequence[int] = range(len(loaded.rows))
        eval_at: Sequence[int] = range(len(held_out.rows))
    else:
        held_out = loaded
        train_at, eval_at = divide(loaded.rows, data.eval_fraction, data.split_seed)
    if not train_at:
        raise FasttuneError("no row is left to train on", train_source, "lower data.eval_fraction")
    return Job(
        config=config,
        plugins=plugins,
        template=template,
        identity=plugins.identity(config.template),
        model=resolve_model(config.model.name),
        source="shipped rows" if data.train is None else train_source,
        train=ChosenRows(loaded.rows, train_at, with_system({}, config.system)),
        eval=ChosenRows(held_out.rows, eval_at, with_system({}, config.system)),
        skipped=skipped,
    )


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, [*TRACKERS])
            raise FasttuneError(f"no tracker is called '{name}'", "train.report_to", hint)
        if importlib.util.find_spec(name) is None:
            raise FasttuneError(
                f"the tracker '{name}' is not installed",
                "train.report_to",
                f"pip install '{name}', or leave it out",
            )
