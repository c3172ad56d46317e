"""One run or base model on any labelled rows, measured as a comparison measures its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fasttune.comparison.plan import Format, Measuring, Plan, make_plan
from fasttune.comparison.result import Arm, Comparison, compare_arms
from fasttune.config import ModelConfig, RunConfig
from fasttune.data.rows import Rows, StoredRows
from fasttune.errors import FasttuneError
from fasttune.formats.template import Template
from fasttune.job import Job
from fasttune.models.tokenizer import resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.metric import Answer
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.source import find


def evaluate(
    name: str | Run,
    data: str | Path | None = None,
    *,
    template: str | None = None,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    include_base: bool = False,
    rows: int = 0,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Comparison:
    """Every metric, with its interval, on rows that have their reference response.

    Measured as `compare` measures its held-out rows; what the folder holds already is not computed
    again.

    Args:
        name: a run, or a base model; see `find`.
        data: a file, a folder or a Hub name; by default the rows that the run holds out.
        columns: our column -> theirs.
        include_base: measure a run's untuned model as well.
        rows: to answer, at equal distances; 0 takes all.
        by: columns of the rows; figures are taken for each of their values, too.
        output: the folder; by default below evaluations/, named after what is measured.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: as `find`, or there are no rows, or the file cannot be read or holds a row
            that cannot be used.
    """
    plugins = plugins or installed_plugins()
    source = find(name, template, system, plugins, force)
    found: Rows
    if data is not None:
        found = source.read(data, columns or {}, labelled=True)
    elif not source.run or not (found := source.run.held_out()):
        raise FasttuneError(
            "there is nothing to evaluate on",
            f"{source.run.folder if source.run else name} holds no rows out",
            "give a file of labelled rows with --data, or tasks of lm-eval with --tasks",
        )
    measuring = Measuring(rows, max_new_tokens, batch_size, include_base or source.run is None)
    folder = Path(output) if output is not None else None
    made = plan_evaluation(
        source.run or source.model, source.template, str(data or "held-out rows"), found, measuring,
        source.plugins, folder,
    )  # fmt: skip
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.comparison.work import run_comparison

    return run_comparison(made, by)


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
