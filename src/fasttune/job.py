"""What a run will do, worked out without loading a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.config import RunConfig
from fasttune.data.divide import load_divided, with_template
from fasttune.data.rows import Rows
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.models.base import trainable
from fasttune.models.tokenizer import resolve_model
from fasttune.models.unsloth import hide_broken_torchvision
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.records import TemplateFacts


@dataclass(frozen=True)
class Job:
    """What a run will do, before a model is loaded: settings, template, and checked rows.

    Attributes:
        template: with the run's own system text; `facts` is what a run keeps of it.
        model: the name or folder that will be loaded.
        source: where the rows came from, for messages.
        skipped: number of bad rows left out.
        notes: what a reader of held-out figures must know.
    """

    config: RunConfig
    plugins: Plugins
    template: Template
    facts: TemplateFacts
    model: str
    source: str
    train: Rows
    eval: Rows
    skipped: int = 0
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return (
            f"<Job: {self.template.name} on {Path(self.model).name}, {self.source}, "
            f"{len(self.train)} rows to train on, {len(self.eval)} held out>"
        )


def prepare(config: RunConfig | None = None, plugins: Plugins | None = None) -> Job:
    """Find the template, and read, check and divide the rows. No model is loaded."""
    config, plugins = with_template(config or RunConfig()), plugins or installed_plugins()
    template, facts = plugins.template(config.template), plugins.facts(config.template)
    template = template.with_system(config.system)
    check_packages(config)
    rows = load_divided(config.data, template)
    for loaded in rows.sources:
        loaded.require_clean(config.data.skip_bad_rows)
    if config.samples.count:
        require_group_columns(config.samples.by, rows.eval or rows.train, "samples.by")
    model = resolve_model(config.model.name)
    config = replace(config, model=trainable(config.model, model))
    source = rows.sources[0].source
    if not rows.train:
        raise FasttuneError("no row is left to train on", source, "lower data.eval_fraction")
    return Job(
        config=config,
        plugins=plugins,
        template=template,
        facts=facts,
        model=model,
        source=source if config.data.train or config.data.sources else "shipped rows",
        train=rows.train,
        eval=rows.eval,
        skipped=sum(loaded.bad_rows for loaded in rows.sources),
        notes=rows.notes(config.data.eval_fraction),
    )


def check_packages(config: RunConfig) -> None:
    """Refuse a tracker or an optimizer that is unknown or not installed."""
    for name in config.train.report_to:
        if importlib.util.find_spec(name) is None:
            raise FasttuneError(
                f"the tracker '{name}' is not installed",
                "train.report_to",
                f"pip install '{name}', or leave it out",
            )
    check_optimizer(config.train.optimizer)


OPTIMIZER_PACKAGES = {
    "adalomo": "lomo_optim",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_torch_xla": "torch_xla",
    "apollo": "apollo_torch",
    "galore": "galore_torch",
    "grokadamw": "grokadamw",
    "lomo": "lomo_optim",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
}
"""The start of an optimizer's name -> the module it needs, which fasttune does not install."""


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that is unknown or not installed."""
    if name != "auto":
        hide_broken_torchvision()
        from transformers.training_args import OptimizerNames

        known = ["auto", *(optimizer.value for optimizer in OptimizerNames)]
        if name not in known:
            hint = did_you_mean(name, known)
            raise FasttuneError(f"there is no optimizer '{name}'", f"train.optimizer: {name}", hint)
    for start, module in OPTIMIZER_PACKAGES.items():
        if name.startswith(start) and importlib.util.find_spec(module) is None:
            raise FasttuneError(
                f"the optimizer '{name}' is not installed",
                f"train.optimizer: there is no module {module}",
                "install it, or take another, such as adamw_torch",
            )


def require_group_columns(names: Sequence[str], rows: Sequence[Row], where: str) -> None:
    """Refuse a column that the held-out rows shall be split by and that none of them has."""
    for name in names:
        if not any(row.get(name) for row in rows):
            hint = did_you_mean(name, list({column: None for row in rows for column in row}))
            raise FasttuneError(f"no held-out row has a column '{name}'", where, hint)
