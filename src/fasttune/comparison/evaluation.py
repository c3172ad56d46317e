"""One run or base model on any labelled rows, measured as a comparison measures its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.comparison.plan import Format, Measuring, Plan, make_plan
from fasttune.comparison.result import Arm, Comparison, compare_arms
from fasttune.config import ModelConfig, RunConfig
from fasttune.data.rows import ChosenRows, Rows
from fasttune.job import Job
from fasttune.models.tokenizer import resolve_model
from fasttune.plugins.metric import Answer
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run


def plan_evaluation(
    of: Run | ModelConfig,
    template: str,
    system: str | None,
    source: str,
    rows: Rows,
    measuring: Measuring,
    plugins: Plugins,
    folder: Path | None = None,
) -> Plan:
    """Plan to measure a run, or a base model under a template, on labelled rows.

    Args:
        system: laid over the rows in place of the template's own system text.
        source: where the rows are from, for people.
    """
    if isinstance(of, Run):
        run, config, model = of, of.config, of.manifest["model"]
    else:
        run, config, model = None, RunConfig(template=template, model=of), resolve_model(of.name)
    config = replace(config, system=system)
    job = Job(
        config, plugins, plugins.template(template), plugins.identity(template), model, source,
        train=ChosenRows(rows, []), eval=rows, skipped=0,
    )  # fmt: skip
    seeds = {run.config.seed: run} if run else {}
    about = {
        "model": model,
        "rows": f"{source}: {len(rows)}",
        **({"runs": run.name} if run else {}),
    }
    return make_plan(folder, [Format(template, job, seeds)], measuring, about, [])


def score_answers(label: str, answers: Sequence[Answer], plugins: Plugins) -> Comparison:
    """Every metric, with its interval, on answers that are there."""
    metrics = [metric for metric, _ in plugins.metrics.values()]
    return compare_arms({}, [Arm(label, label, None, answers)], metrics, [])
