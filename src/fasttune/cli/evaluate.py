"""`fasttune evaluate`: one run or base model on any labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.compare import show_figures, words
from fasttune.cli.generate import Force, RunArgument, System, Template, Tokens
from fasttune.cli.options import By, Columns, Together
from fasttune.source import load

if TYPE_CHECKING:
    from fasttune.comparison.tasks import TaskFigure


@app.command()
def evaluate(
    context: typer.Context,
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Labelled rows: a file, a folder or a Hub name. Default: the run's held-out rows.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-eval, as gsm8k,arc_easy, or paths of its task files; takes the extra "
            "lm-eval."
        ),
    ] = None,
    columns: Columns = None,
    template: Template = None,
    system: System = None,
    by: By = None,
    include_base: Annotated[
        bool, typer.Option(help="Measure a run's untuned model as well.")
    ] = False,
    rows: Annotated[
        int,
        typer.Option(
            min=0,
            max=10**6,
            help="Rows to answer, at equal distances, and of each task, from its start; 0: all.",
        ),
    ] = 0,
    max_new_tokens: Tokens = 256,
    batch_size: Together = 32,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder. Default: below evaluations/, named after what it holds."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    force: Force = False,
) -> None:
    """Take every metric, with its interval, of a run or a base model on labelled rows.

    The figures, the folder and the report are those of `fasttune compare`. Tasks are asked by
    lm-eval, in the format of the model.
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

        found = evaluate_run(
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

        printed |= {"folder": str(found.folder), **to_json(found)}
        if not as_json:
            show_figures(found)
            console().print(f"report: {found.report}", markup=False)
    if as_json:
        print_json(printed)


def _show_tasks(figures: Sequence[TaskFigure]) -> None:
    from rich.table import Table

    table = Table("task", "metric", "value", "95 % interval", "rows", box=None)
    for figure in figures:
        low, high = figure.interval.low, figure.interval.high
        reach = f"{low:.3g} … {high:.3g}" if low == low else "-"
        value = f"{figure.interval.value:.3g}"
        table.add_row(figure.task, figure.metric, value, reach, str(figure.rows))
    console().print(table)
