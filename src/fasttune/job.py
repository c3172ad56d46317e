"""What a run will do, worked out without loading a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fasttune.config import RunConfig
from fasttune.data.load import load, shipped
from fasttune.data.rows import ChosenRows
from fasttune.data.split import divide
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.models.tokenizer import resolve_model
from fasttune.plugins.registry import Plugins
from fasttune.plugins.template import Row, Template

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Prepared:
    """Checked rows and the template they are for.

    Attributes:
        model: the name or folder that will be loaded.
        source: where the rows came from, for messages.
        skipped: number of bad rows left out.
    """

    template: Template
    model: str
    source: str
    train: Sequence[Row]
    eval: Sequence[Row]
    skipped: int


def prepare(config: RunConfig, plugins: Plugins) -> Prepared:
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
    return Prepared(
        template=template,
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


def with_system(row: Mapping[str, str], system: str | None) -> Row:
    """The row with the run's own system text, where there is one."""
    return {**row, "system": system} if system else row
