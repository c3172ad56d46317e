"""One run or base model on any labelled rows, measured as a comparison measures its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fasttune.comparison.plan import Format, Measuring, make_plan
from fasttune.comparison.result import Arm, Comparison, compare_arms
from fasttune.config import RunConfig
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.split import digest
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.models.tokenizer import resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.metric import Answer
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.source import find

log = logging.getLogger(__name__)


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
    source = find(name, template, system, plugins or installed_plugins(), force)
    run, asked = source.run, source.template
    labelled: Rows
    if data is not None:
        labelled = source.read(data, columns or {}, labelled=True)
    elif not run or not (labelled := run.held_out()):
        raise FasttuneError(
            "there is nothing to evaluate on",
            f"{run.folder if run else name} holds no rows out",
            "give a file of labelled rows with --data, or tasks of lm-eval with --tasks",
        )
    job = Job(
        config=run.config if run else RunConfig(template=asked.name, model=source.model),
        plugins=source.plugins,
        template=asked,
        facts=run.manifest["template"] if run else source.plugins.facts(asked.name),
        model=run.manifest["model"] if run else resolve_model(source.model.name),
        source=str(data or "held-out rows"),
        train=StoredRows(),
        eval=labelled,
        skipped=0,
    )
    about = {"model": job.model, "rows": f"{job.source}: {len(labelled)}"}
    if run:
        about["runs"] = run.name
    one = Format(asked.name, asked.name, job, {run.config.seed: run} if run else {})
    measuring = Measuring(rows, max_new_tokens, batch_size, include_base or run is None)
    trained = {digest(row) for row in run.training_rows()} if run else set()
    seen = sum(digest(row) in trained for row in labelled)
    notes = [f"The run was trained on {seen} of these {len(labelled)} rows."] if seen else []
    for note in notes:
        log.warning("warning: %s", note)
    plan = make_plan([one], measuring, about, notes)
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.comparison.work import run_comparison

    return run_comparison(plan, by, output)


def score_answers(label: str, answers: Sequence[Answer], plugins: Plugins) -> Comparison:
    """Every metric, with its interval, on answers that are there."""
    metrics = [metric for metric, _ in plugins.metrics.values()]
    return compare_arms({}, [Arm(label, label, None, answers)], metrics, [])
