"""`fasttune compare` and `evaluate`: measure prompt formats on the same rows, or one run on any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune import source
from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, say, table
from fasttune.cli.options import argument, expand, folder, option, words
from fasttune.comparison import Budget, Without
from fasttune.comparison.plan import Measuring
from fasttune.config import Seed
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError
from fasttune.runs import Run, find_run
from fasttune.terminal import console, echo
from fasttune.yaml_text import convert

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fasttune.comparison.result import Comparison, Figure
    from fasttune.comparison.tasks import TaskFigure


@app.command()
@expand
def compare(
    context: typer.Context,
    measuring: Measuring,
    arguments: Annotated[
        list[str] | None,
        argument("Finished runs, or settings to train with.", metavar="RUN|KEY=VALUE"),
    ] = None,
    templates: Annotated[str | None, option("Formats to train, as alpaca,reasoning.")] = None,
    data: options.Data = None,
    columns: options.Columns = None,
    config: options.Config = None,
    model: options.Model = None,
    seeds: Annotated[
        str | None, option("Seeds to train each format with, as 1,2,3. Default: the config's.")
    ] = None,
    budget: Annotated[
        Budget, option("Equal 'steps' or equal 'tokens' for every format.")
    ] = "steps",
    without: Annotated[
        Without | None, option("'eos': also train each format without a loss on EOS.")
    ] = None,
    sweep: Annotated[
        str | None, option("Values to train each format with, as train.learning_rate=1e-4,3e-4.")
    ] = None,
    by: options.By = None,
    output: Annotated[
        Path | None, folder("Folder. Default: below comparisons/, named after what is compared.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train prompt formats on the same rows, or compare finished runs, and name the better one.

    After an interruption, the same command resumes.
    """
    runs, settings = options.separate(arguments)
    if bool(runs) == (templates is not None):
        raise FasttuneError(
            "give --templates or runs, one of them",
            "fasttune compare",
            "fasttune compare --templates alpaca,reasoning, or fasttune compare RUN RUN",
        )
    formats: list[str] | list[Run] = _formats(templates)
    if runs:
        training = (data, columns, config, model, seeds, without, sweep, *settings)
        if any(word is not None for word in training):
            hint = (
                "leave out settings, --data, --map, --config, --model, --seeds, --without, --sweep"
            )
            raise FasttuneError("finished runs keep their settings", ", ".join(runs), hint)
        formats = [find_run(name) for name in runs]
    from fasttune.comparison.compare import compare as compare_formats

    try:
        comparison = compare_formats(
            formats,
            options.AllSettings(None, data, columns, config, model, settings).load(),
            seeds=None if seeds is None else _numbers(seeds),
            budget=budget,
            without=without,
            sweep=None if sweep is None else _sweep(sweep),
            measuring=measuring,
            by=words(by),
            output=output,
            plugins=plugins(context, config),
        )
    except KeyboardInterrupt:
        say("interrupted; the same command resumes")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json({"folder": str(comparison.folder), **comparison.as_dict()})
    else:
        show_figures(comparison)
        echo(f"report: {comparison.report}")


def _formats(templates: str | None) -> list[str]:
    """The names in --templates; none without it."""
    if templates is not None and not words(templates):
        hint = "give --templates alpaca,reasoning"
        raise FasttuneError("no template is given", f"--templates {templates!r}", hint)
    return words(templates)


def _sweep(text: str) -> tuple[str, list[str]]:
    key, _, values = text.partition("=")
    if not words(values):
        hint = "give --sweep train.learning_rate=1e-4,3e-4"
        raise FasttuneError(f"--sweep is '{text}'", "--sweep", hint)
    return key.strip(), words(values)


def _numbers(seeds: str) -> list[int]:
    try:
        return [convert(word, Seed) for word in seeds.split(",")]
    except ValueError as error:
        hint = f"give numbers as 1,2,3; each is {error}"
        raise FasttuneError(f"--seeds is '{seeds}'", f"--seeds {seeds}", hint) from error


def show_figures(comparison: Comparison, out: Console | None = None) -> None:
    """Print metrics, verdict and notes, by default on standard output."""
    out = out or console()
    out.print(_table(comparison))
    out.print(
        "below each figure its 95 % interval, none where all rows give the same; "
        "↑ more is better, ↓ less is better\n"
    )
    for paragraph in comparison.sentences():
        out.print(f"{paragraph}\n")
    for column, groups in comparison.groups.items():
        for value, group in groups.items():
            out.print(f"{column} {value}, {group.rows} rows", style="bold")
            sentences = group.sentences(tuned_only=True)
            for paragraph in sentences:
                out.print(f"{paragraph}\n")
            if not sentences:
                out.print(_table(group))
    for note in comparison.notes:
        out.print(f"note: {note}")


def _table(comparison: Comparison) -> Table:
    from rich.text import Text

    rows = []
    for metric in comparison.metrics:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
        cells = [_cell(comparison.figures[label][metric.name]) for label in comparison.labels]
        counted = comparison.counted(metric.name)
        name = f"{metric.name}{arrow}" + (f"\n  {counted}" if counted else "")
        rows.append((Text(name, no_wrap=True), *cells))
    return table(("", *comparison.labels), rows)


def _cell(figure: Figure) -> Text:
    from rich.text import Text

    interval = figure.interval
    if interval.value != interval.value:
        return Text("-")
    if interval.is_point:
        return Text(f"{interval.value:.3g}")
    reach = f"{_short(interval.low)} … {_short(interval.high)}"
    return Text.assemble(f"{interval.value:.3g}\n", (reach, "dim"))


def _short(bound: float) -> str:
    """At most three decimals, so that six columns fit."""
    return f"{bound:.3g}" if abs(bound) >= 1 else f"{bound:.3f}".rstrip("0").rstrip(".")


@app.command()
@expand
def evaluate(
    context: typer.Context,
    run: options.RunOrModel,
    reading: options.ReadSettings = None,
    measuring: Measuring = Measuring(rows=0, max_new_tokens=256, include_base=False),
    data: Annotated[
        str | None, option("Labelled rows. Default: the run's held-out rows.", "--data", "-d")
    ] = None,
    tasks: Annotated[
        str | None, option("lm-eval tasks (gsm8k,arc_easy) or task files; needs lm-eval.")
    ] = None,
    columns: options.Columns = None,
    template: options.BaseTemplate = None,
    system: options.System = None,
    by: options.By = None,
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
        from fasttune.comparison.bootstrap import as_json as figure_json
        from fasttune.comparison.tasks import require_harness, run_tasks

        require_harness()
        generator = source.load(run, template, system, loaded, force)
        figures = run_tasks(generator, words(tasks), measuring.rows, measuring.batch_size)
        printed["tasks"] = [*map(figure_json, figures)]
        if not as_json:
            _show_tasks(figures)
    if data is not None or not words(tasks):
        from fasttune.comparison.compare import evaluate as evaluate_run
        from fasttune.data.load import parse_columns

        result = evaluate_run(
            run,
            data,
            template=template,
            system=system,
            columns=parse_columns(columns or []),
            settings=reading or (),
            measuring=measuring,
            by=words(by),
            output=output,
            plugins=loaded,
            force=force,
        )
        printed |= {"folder": str(result.folder), **result.as_dict()}
        if not as_json:
            show_figures(result)
            echo(f"report: {result.report}")
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
