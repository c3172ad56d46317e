"""One run or base model on any labelled rows, measured as a comparison measures its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fasttune.comparison.plan import Format, Measuring, Plan, make_plan
from fasttune.comparison.result import Arm, Comparison, compare_arms
from fasttune.config import ModelConfig, RunConfig
from fasttune.data.rows import Rows, StoredRows
from fasttune.formats.template import Template
from fasttune.job import Job
from fasttune.models.tokenizer import resolve_model
from fasttune.plugins.metric import Answer
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run


def plan_evaluation(
    of: Run | ModelConfig,
    template: Template,
    source: str,
    rows: Rows,
    measuring: Measuring,
    plugins: Plugins,
    folder: Path | None = None,
) -> Plan:
    """Plan to measure a run, or a base model under a template, on labelled rows.

    Args:
        template: with the system text that it is asked with.
        source: where the rows are from, for people.
    """
    if isinstance(of, Run):
        run, config, facts = of, of.config, of.manifest["template"]
        model = of.manifest["model"]
    else:
        run, config = None, RunConfig(template=template.name, model=of)
        facts, model = plugins.facts(template.name), resolve_model(of.name)
    job = Job(
        config, plugins, template, facts, model, source, train=StoredRows(), eval=rows, skipped=0
    )
    seeds = {run.config.seed: run} if run else {}
    about = {
        "model": model,
        "rows": f"{source}: {len(rows)}",
        **({"runs": run.name} if run else {}),
    }
    return make_plan(folder, [Format(template.name, job, seeds)], measuring, about, [])


def score_answers(label: str, answers: Sequence[Answer], plugins: Plugins) -> Comparison:
    """Every metric, with its interval, on answers that are there."""
    metrics = [metric for metric, _ in plugins.metrics.values()]
    return compare_arms({}, [Arm(label, label, None, answers)], metrics, [])
