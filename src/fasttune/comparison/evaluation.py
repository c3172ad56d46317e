"""One run or base model on labelled rows, measured as a comparison measures its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.comparison.plan import Format, Measuring, job_of, make_plan
from fasttune.config import RunConfig
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.split import digest
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.models.tokenizer import resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.source import find

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison

log = logging.getLogger(__name__)


def evaluate(
    name: str | Run,
    data: str | Path | None = None,
    *,
    template: str | None = None,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    measuring: Measuring = Measuring(rows=0, max_new_tokens=256, include_base=False),
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
        measuring: how the rows are answered.
        by: columns of the rows; figures are taken for each of their values, too.
        output: the folder; by default below evaluations/, named after what is measured.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: as `find`, or there are no rows, or the file cannot be read or holds a row
            that cannot be used.
    """
    source = find(name, template, system, plugins or installed_plugins(), force)
    run, chosen = source.run, source.template
    rows: Rows
    if data is not None:
        rows = source.read(data, columns or {}, labelled=True)
    elif not run or not (rows := run.held_out()):
        raise FasttuneError(
            "there is nothing to evaluate on",
            f"{run.folder if run else name} holds no rows out",
            "give a file of labelled rows with --data, or tasks of lm-eval with --tasks",
        )
    if run:
        job = job_of(run, source.plugins, chosen, rows)
        measured = Format(chosen.name, chosen.name, job, {run.config.seed: run})
    else:
        job = Job(
            config=RunConfig(template=chosen.name, model=source.model),
            plugins=source.plugins,
            template=chosen,
            facts=source.plugins.facts(chosen.name),
            model=resolve_model(source.model.name),
            source="",
            train=StoredRows(),
            eval=rows,
        )
        measured = Format(chosen.name, chosen.name, job, {})
        measuring = replace(measuring, include_base=True)
    about = {"model": job.model, "rows": f"{data or 'held-out rows'}: {len(rows)}"}
    if run:
        about["runs"] = run.name
    trained = {digest(row) for row in run.training_rows()} if run else set()
    seen = sum(digest(row) in trained for row in rows)
    notes = [f"The run was trained on {seen} of these {len(rows)} rows."] if seen else []
    for note in notes:
        log.warning("warning: %s", note)
    plan = make_plan([measured], measuring, about, notes)
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.comparison.work import run_comparison

    return run_comparison(plan, by, output)
