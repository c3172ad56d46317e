"""`fasttune compare`: which prompt format is better, on the same rows and the same budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError

Budget = Literal["steps", "tokens"]

if TYPE_CHECKING:
    from fasttune.compare_plan import Measuring, Plan
    from fasttune.comparison import Comparison, Figure


@app.command()
def compare(
    context: typer.Context,
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|KEY=VALUE]...",
            help="Finished runs to compare; or any setting for the runs to come.",
        ),
    ] = None,
    templates: Annotated[
        str | None, typer.Option("--templates", help="Formats to train, as alpaca,reasoning.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Rows: a file, a folder or a Hub name.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="Column mapping, as instruction=question.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML of settings.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Hub name or folder; the default of run.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds to train each format with, as 1,2,3. [default: the config's]"),
    ] = None,
    budget: Annotated[
        Budget,
        typer.Option(help="'steps': as many for every format; 'tokens': as many tokens."),
    ] = "steps",
    include_base: Annotated[
        bool, typer.Option(help="Measure the untuned model under every format as well.")
    ] = True,
    rows: Annotated[
        int, typer.Option(min=0, help="Held-out rows to answer, at equal distances; 0: all.")
    ] = 200,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Where an answer that does not stop is cut off.")
    ] = 160,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows answered at a time.")] = 32,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder. [default: below comparisons/, named by what is compared]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train prompt formats on the same rows, or take finished runs, and say which is better.

    Interrupted, the same command goes on where it stopped.
    """
    from fasttune.compare_plan import Measuring

    runs = [word for word in given or [] if "=" not in word]
    settings = [word for word in given or [] if "=" in word]
    measuring = Measuring(rows, max_new_tokens, batch_size, include_base)
    if bool(runs) == (templates is not None):
        raise FasttuneError(
            "give --templates or runs, one of them",
            "",
            "fasttune compare --templates alpaca,reasoning, or fasttune compare RUN RUN",
        )
    if runs:
        training = (data, columns, config, model, seeds, *settings)
        if any(word is not None for word in training):
            raise FasttuneError(
                "finished runs keep their settings",
                ", ".join(runs),
                "leave out --data, --map, --config, --model, --seeds and settings",
            )
        plan = _of_runs(context, runs, measuring, output)
    else:
        plan = _of_templates(
            context, templates or "", seeds, budget, data, columns, config, model, settings,
            measuring, output,
        )  # fmt: skip
    _say(f"comparison: {plan.folder}")
    from fasttune.compare import Interrupted, run_comparison

    try:
        comparison, report = run_comparison(plan, plugins(context, config), not as_json, _say)
    except (Interrupted, KeyboardInterrupt):
        _say("interrupted; the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        from fasttune.compare import to_json

        print_json({"folder": str(plan.folder), **to_json(comparison)})
    else:
        _show(comparison)
        console().print(f"report: {report}", markup=False)


def _of_runs(
    context: typer.Context, names: list[str], measuring: Measuring, output: Path | None
) -> Plan:
    from fasttune.compare_plan import plan_runs
    from fasttune.runs import find_run

    return plan_runs([find_run(name) for name in names], measuring, plugins(context), output)


def _of_templates(
    context: typer.Context,
    templates: str,
    seeds: str | None,
    budget: Budget,
    data: str | None,
    columns: list[str] | None,
    config: Path | None,
    model: str | None,
    settings: list[str],
    measuring: Measuring,
    output: Path | None,
) -> Plan:
    from fasttune.compare_plan import plan_templates
    from fasttune.config import load_config, parse_override
    from fasttune.data import parse_columns

    named = {
        "data.train": data,
        "data.columns": parse_columns(columns) if columns else None,
        "model.name": model,
    }
    overrides = [(key, value) for key, value in named.items() if value is not None]
    resolved = load_config(config, overrides + [parse_override(text) for text in settings])
    try:
        numbers = [int(word) for word in seeds.split(",")] if seeds else [resolved.seed]
        if min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise FasttuneError(
            f"--seeds is '{seeds}'", "", "it takes whole numbers of 0 or more, as 1,2,3"
        ) from None
    names = [word.strip() for word in templates.split(",") if word.strip()]
    loaded = plugins(context, config)
    return plan_templates(resolved, names, numbers, budget, measuring, loaded, output)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(comparison: Comparison) -> None:
    from rich.table import Table

    from fasttune.comparison import verdict

    out = console()
    table = Table("", *comparison.labels, box=None, padding=(0, 2, 0, 0))
    for metric in comparison.metrics:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
        cells = [_cell(comparison.figures[label][metric.name]) for label in comparison.labels]
        table.add_row(f"{metric.name}{arrow}", *cells)
    out.print(table)
    out.print("in brackets: 95 % intervals; ↑ more is better, ↓ less is better\n")
    for paragraph in verdict(comparison):
        out.print(paragraph, markup=False)
    for note in comparison.notes:
        out.print(f"note: {note}", markup=False)


def _cell(figure: Figure) -> str:
    found = figure.interval
    if found.value != found.value:
        return "-"
    return rf"{found.value:.3g} \[{found.low:.3g}, {found.high:.3g}]"
