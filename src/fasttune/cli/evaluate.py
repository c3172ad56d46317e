"""`fasttune evaluate`: one run or base model on any labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.compare import show_figures
from fasttune.cli.options import folder, number, option, words
from fasttune.cli.tables import table
from fasttune.source import load

if TYPE_CHECKING:
    from fasttune.comparison.tasks import TaskFigure


@app.command()
def evaluate(
    context: typer.Context,
    run: options.RunOrModel,
    data: Annotated[
        str | None, option("Labelled rows. Default: the run's held-out rows.", "--data", "-d")
    ] = None,
    tasks: Annotated[
        str | None, option("lm-eval tasks (gsm8k,arc_easy) or task files; needs the extra lm-eval.")
    ] = None,
    columns: options.Columns = None,
    template: options.BaseTemplate = None,
    system: options.System = None,
    by: options.By = None,
    include_base: Annotated[bool, option("Measure the untuned model of a run as well.")] = False,
    rows: Annotated[
        int, number("Rows to answer, evenly spaced; of a task the first ones; 0: all.", least=0)
    ] = 0,
    max_new_tokens: options.Tokens = 256,
    batch_size: options.BatchSize = 32,
    output: Annotated[
        Path | None, folder("Folder. Default: below evaluations/, named after its content.")
    ] = None,
    as_json: options.Json = False,
    force: options.ForceTemplate = False,
) -> None:
    """Compute every metric, with its interval, for a run or a base model on labelled rows.

    The metrics, the folder and the report are those of `fasttune compare`. lm-eval runs its tasks
    in the format of the model.
    """
    loaded = plugins(context)
    printed: dict[str, Any] = {}
    if words(tasks):
        from fasttune.comparison.tasks import require_harness, run_tasks

        require_harness()
        generator = load(run, template, system, loaded, force)
        figures = run_tasks(generator, words(tasks), rows, batch_size)
        printed["tasks"] = [figure.as_dict() for figure in figures]
        if not as_json:
            _show_tasks(figures)
    if data is not None or not words(tasks):
        from fasttune.comparison.evaluation import evaluate as evaluate_run
        from fasttune.data.load import parse_columns

        result = evaluate_run(
            run,
            data,
            template=template,
            system=system,
            columns=parse_columns(columns or []),
            include_base=include_base,
            rows=rows,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            by=words(by),
            output=output,
            plugins=loaded,
            force=force,
        )
        from fasttune.comparison.work import to_json  # after Unsloth, which evaluating imports

        printed |= {"folder": str(result.folder), **to_json(result)}
        if not as_json:
            show_figures(result)
            console().print(f"report: {result.report}", markup=False)
    if as_json:
        print_json(printed)


def _show_tasks(figures: Sequence[TaskFigure]) -> None:
    rows = []
    for figure in figures:
        low, high = figure.interval.low, figure.interval.high
        reach = f"{low:.3g} … {high:.3g}" if low == low else "-"
        value = f"{figure.interval.value:.3g}"
        rows.append((figure.task, figure.metric, value, reach, str(figure.rows)))
    console().print(table(("task", "metric", "value", "95 % interval", "rows"), rows))
