"""`fasttune compare`: which prompt format is better, on the same rows and the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fasttune.cli.app import app, console, plugins, print_json, say
from fasttune.cli.options import By, Columns, Config, Data, Model, Together, overrides
from fasttune.config import load_config
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError
from fasttune.runs import find_run

Budget = Literal["steps", "tokens"]
Without = Literal["eos"]

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fasttune.comparison.result import Comparison, Figure


@app.command()
def compare(
    context: typer.Context,
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|KEY=VALUE",
            help="Finished runs to compare; or any setting for the runs to come.",
        ),
    ] = None,
    templates: Annotated[
        str | None, typer.Option("--templates", help="Formats to train, as alpaca,reasoning.")
    ] = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds to train each format with, as 1,2,3. Default: the config's."),
    ] = None,
    budget: Annotated[
        Budget,
        typer.Option(help="'steps': as many for every format; 'tokens': as many tokens."),
    ] = "steps",
    without: Annotated[
        Without | None,
        typer.Option(
            help="'eos': train each format a second time without a loss on EOS, to see what "
            "becomes of its answers."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Train each format with each of these values, as train.learning_rate=1e-4,3e-4.",
        ),
    ] = None,
    include_base: Annotated[
        bool, typer.Option(help="Measure the untuned model under every format as well.")
    ] = True,
    rows: Annotated[
        int,
        typer.Option(min=0, max=10**6, help="Held-out rows to answer, at equal distances; 0: all."),
    ] = 200,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=10**6, help="Where an answer that does not stop is cut off.")
    ] = 160,
    batch_size: Together = 32,
    by: By = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder. Default: below comparisons/, named after what is compared.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train prompt formats on the same rows, or take finished runs, and say which is better.

    Interrupted, the same command goes on where it stopped.
    """
    runs = [word for word in given or [] if "=" not in word]
    settings = [word for word in given or [] if "=" in word]
    if bool(runs) == (templates is not None):
        raise FasttuneError(
            "give --templates or runs, one of them",
            "fasttune compare",
            "fasttune compare --templates alpaca,reasoning, or fasttune compare RUN RUN",
        )
    if runs:
        training = (data, columns, config, model, seeds, without, sweep, *settings)
        if any(word is not None for word in training):
            raise FasttuneError(
                "finished runs keep their settings",
                ", ".join(runs),
                "leave out --data, --map, --config, --model, --seeds, --without, --sweep and "
                "settings",
            )
    named = [find_run(name) for name in runs]
    names = words(templates)
    if not named and not names:
        raise FasttuneError(
            "no template is given", f"--templates {templates!r}", "as --templates alpaca,reasoning"
        )
    from fasttune.comparison.compare import compare as compare_formats

    try:
        comparison = compare_formats(
            named or names,
            load_config(config, overrides(data, columns, model, settings)),
            seeds=None if seeds is None else _numbers(seeds),
            budget=budget,
            without=without,
            sweep=None if sweep is None else _sweep(sweep),
            include_base=include_base,
            rows=rows,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            by=words(by),
            output=output,
            plugins=plugins(context, config),
        )
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        from fasttune.comparison.work import to_json

        print_json({"folder": str(comparison.folder), **to_json(comparison)})
    else:
        show_figures(comparison)
        console().print(f"report: {comparison.report}", markup=False)


def words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _sweep(text: str) -> tuple[str, list[str]]:
    key, _, values = text.partition("=")
    if not words(values):
        raise FasttuneError(
            f"--sweep is '{text}'", "--sweep", "as --sweep train.learning_rate=1e-4,3e-4"
        )
    return key.strip(), words(values)


def _numbers(seeds: str) -> list[int]:
    try:
        numbers = [int(word) for word in seeds.split(",")]
    except ValueError:
        numbers = [-1]
    if not all(0 <= number < 2**32 for number in numbers):
        raise FasttuneError(
            f"--seeds is '{seeds}'",
            f"--seeds {seeds}",
            "it takes whole numbers from 0 to 4294967295, as 1,2,3",
        )
    return numbers


def show_figures(comparison: Comparison, out: Console | None = None) -> None:
    """Figures, verdict and notes as text, on standard output unless said otherwise."""
    out = out or console()
    out.print(_table(comparison))
    out.print("below each figure its 95 % interval; ↑ more is better, ↓ less is better\n")
    for paragraph in comparison.sentences():
        out.print(f"{paragraph}\n", markup=False)
    for column, groups in comparison.groups.items():
        for value, group in groups.items():
            out.print(f"{column} {value}, {group.rows} rows", style="bold", markup=False)
            said = group.sentences(tuned_only=True)
            for paragraph in said:
                out.print(f"{paragraph}\n", markup=False)
            if not said:
                out.print(_table(group))
    for note in comparison.notes:
        out.print(f"note: {note}", markup=False)


def _table(comparison: Comparison) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for label in comparison.labels:
        table.add_column(label)
    for metric in comparison.metrics:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]
        cells = [_cell(comparison.figures[label][metric.name]) for label in comparison.labels]
        counted = comparison.counted(metric.name)
        table.add_row(f"{metric.name}{arrow}" + (f"\n  {counted}" if counted else ""), *cells)
    return table


def _cell(figure: Figure) -> str:
    found = figure.interval
    if found.value != found.value:
        return "-"
    return f"{found.value:.3g}\n[dim]{_short(found.low)} … {_short(found.high)}[/dim]"


def _short(bound: float) -> str:
    """At most three digits behind the point: six columns have to fit."""
    return f"{bound:.3g}" if abs(bound) >= 1 else f"{bound:.3f}".rstrip("0").rstrip(".")
