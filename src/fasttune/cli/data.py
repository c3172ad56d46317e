"""`fasttune data` and `preview`: rows before training, all of them or one as the model sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttune.cli import options
from fasttune.cli.app import app, facts, plugins, print_json, table
from fasttune.cli.options import argument, expand, flag, number, option
from fasttune.config import Override, load_config
from fasttune.errors import FasttuneError
from fasttune.inspection.near import NEAR_ROWS
from fasttune.runs import find_run
from fasttune.terminal import console, echo

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fasttune.data.finding import Finding
    from fasttune.inspection.survey import Bin, Survey

SHOWN = 20
SPREAD = ("min", "median", "p95", "max")


@app.command()
@expand
def data(
    context: typer.Context,
    settings: options.Settings,
    arguments: Annotated[
        list[str] | None,
        argument(
            "A .json, .jsonl, .csv, .tsv or .parquet file, the folder of a saved data set, or a "
            "name on the Hub; by default the data set that comes with fasttune. Settings, such as "
            "data.skip_bad_rows=true.",
            metavar="FILE|KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, option("Split of a folder or a Hub data set.", show_default="train")
    ] = None,
    turns: options.Turns = None,
    max_length: options.MaxLength = None,
    eval_fraction: Annotated[
        float | None, option("Share of rows held out for evaluation.", show_default="0.05")
    ] = None,
    near: Annotated[
        bool | None,
        option(f"Count near-duplicates (needs datasketch), by default up to {NEAR_ROWS} rows."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check rows before training: problems, lengths, tokens, and the split.

    The exit status is 2 if a row cannot be used.
    """
    from fasttune.inspection.survey import survey_run
    from fasttune.models.tokenizer import resolve_model
    from fasttune.planning.schedule import settle

    files, changes = options.separate(arguments)
    options.one_name(files, settings.data)
    given = settings.overrides({
        "data.split": split, "data.turns": turns, "model.max_length": max_length,
        "data.eval_fraction": eval_fraction,
    })  # fmt: skip
    for source in files:
        where = f"FILE {source!r}"
        given += [Override("data.train", source, where), Override("data.sources", (), where)]
    file = settings.config
    config = load_config(file, [*given, *changes])
    figures = survey_run(config, plugins(context, file), near)
    if as_json:
        print_json(asdict(figures))
    else:
        _show(console(), figures)
    if not config.data.skip_bad_rows:
        figures.require_clean()
    settle(config, resolve_model(config.model.name), figures.train_rows)


@app.command()
@expand
def preview(
    context: typer.Context,
    settings: options.Settings,
    arguments: Annotated[
        list[str] | None,
        argument(
            "A run (folder, name or 'last'), for its format, rows and model. Settings, such as "
            "data.turns=first.",
            metavar="RUN|KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    line: Annotated[
        int | None,
        option(
            "First row to show, by its number in messages: its line in the file.",
            "--line",
            "--row",
            min=1,
            max=10**9,
        ),
    ] = None,
    rows: Annotated[int, number("How many rows to show.")] = 1,
    system: options.System = None,
    turns: options.Turns = None,
    max_length: options.MaxLength = None,
    ids: Annotated[bool, flag("Show the token ids.", "--ids")] = False,
    html: Annotated[Path | None, option("Write an HTML page instead.", metavar="FILE")] = None,
    as_json: options.Json = False,
    force: Annotated[bool, flag("Replace the file of --html.", "--force")] = False,
) -> None:
    """Show a row as the model sees it: sections, tokens, and which of them are trained.

    Settings come from the defaults, then RUN or --config, then the command line.
    """
    from fasttune.data.divide import with_template
    from fasttune.files import require_free, write_text
    from fasttune.inspection.preview import TerminalPreview, preview_html, preview_rows

    if html and as_json:
        where = f"--html {html}"
        raise FasttuneError("--html and --json exclude each other", where, "give one of them")
    if html is not None:
        require_free(html, "--html", force)
    runs, changes = options.separate(arguments)
    run = options.one_name(runs)
    if run is not None and (settings.template or settings.config) is not None:
        raise FasttuneError(
            "a run has its own format and settings",
            f"fasttune preview {run}",
            "leave out --template and --config, or the run",
        )
    kept = None if run is None else find_run(run)
    given = settings.overrides(
        {"system": system, "model.max_length": max_length, "data.turns": turns}
    )
    base = kept.config if kept else None
    config = with_template(load_config(settings.config, [*given, *changes], base))
    loaded = plugins(context, settings.config)
    shown = kept.kept_template(loaded)[0] if kept else loaded.template(config.template)
    source = kept if settings.data is None else None
    previews = preview_rows(config, shown.with_system(config.system), line, rows, source)
    if as_json:
        print_json([each.as_dict() for each in previews])
    elif html:
        write_text(html, preview_html(previews, ids))
        echo(html)
    else:
        for index, each in enumerate(previews):
            console().print(*([""] if index else []), TerminalPreview(each, ids), sep="\n")


def _show(out: Console, figures: Survey) -> None:
    findings = figures.problems
    out.print(facts(_facts(figures)), "", _lengths(figures), "")
    out.print(_bars(out, figures.tokens.histogram))
    if findings:
        out.print("", _problems(findings))
        if len(findings) > SHOWN:
            out.print(f"and {len(findings) - SHOWN} more; --json has all of them")


def _facts(figures: Survey) -> dict[str, str]:
    tokens = figures.tokens
    values = {
        "source": figures.source,
        "template": figures.template,
        "tokenizer": figures.tokenizer,
        "rows": f"{figures.good_rows} good, {figures.bad_rows} bad, "
        f"{figures.warnings} with a warning",
        "written as": _counts(figures.forms),
    }
    if spread := figures.exchanges:
        values["exchanges"] = f"{spread.min} to {spread.max} a row, median {spread.median:g}"
    if figures.first_only:
        values["exchanges"] = f"only the first one of a row ({figures.first_only} rows have more)"
    if figures.proposed:
        values["perhaps"] = " ".join(f"--map {o}={t}" for o, t in figures.proposed.items())
    spoken = figures.languages or figures.scripts
    values["languages" if figures.languages else "scripts"] = _counts(spoken)
    share = f"eval fraction {figures.eval_fraction:g}"
    origin = "from a file of their own" if figures.eval_source else share
    split = f"{figures.train_rows} to train on, {figures.eval_rows} to evaluate"
    values["split"] = f"{split} ({origin})"
    if figures.notes:
        values["held out"] = "; ".join(figures.notes)
    values["nearly alike"] = _near(figures)
    values["tokens"] = f"{tokens.total}, of which {tokens.trained_share:.1%} are trained"
    values["too long"] = f"{tokens.overlong} rows of more than {tokens.max_length} tokens"
    return values


def _near(figures: Survey) -> str:
    near = figures.near
    if near is None:
        return "not counted: pip install datasketch, or --near for many rows"
    shown = "; ".join(f"{row} is like {other}" for row, other in near.examples)
    count = f"{near.rows} row{'s' * (near.rows != 1)} like an earlier one"
    return f"{count}, as {shown}" if shown else count


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _lengths(figures: Survey) -> RenderableType:
    lengths = [
        *((name, "characters", c.rows, c.characters) for name, c in figures.columns.items()),
        ("a row", "tokens", figures.good_rows, figures.tokens.per_row),
    ]
    rows = [
        (name, unit, str(filled), str(s.min), f"{s.median:g}", str(s.p95), str(s.max))
        for name, unit, filled, s in lengths
    ]
    return table(("length of", "in", "filled", *SPREAD), rows, right=("filled", *SPREAD))


def _bars(out: Console, histogram: list[Bin]) -> RenderableType:
    from rich.bar import Bar

    most = max(bin.rows for bin in histogram)
    width = max(1, min(60, out.width - 24))
    rows: list[tuple[RenderableType, ...]] = []
    for bin in histogram:
        bar: RenderableType = "#" * math.ceil(bin.rows / most * width)
        if out.is_terminal and not out.options.ascii_only:
            sliver = most / width / 8 if bin.rows else 0  # a single row shows, too
            bar = Bar(most, 0, max(bin.rows, sliver), width=width, color="cyan")
        span = f"{bin.low}-{bin.high}" if bin.low < bin.high else str(bin.low)
        rows.append((span, str(bin.rows), bar))
    return table(("tokens", "rows", ""), rows, right=("tokens", "rows"))


def _problems(findings: list[Finding]) -> RenderableType:
    several = any(finding.source for finding in findings)
    rows = []
    for finding in findings[:SHOWN]:
        message = finding.message if finding.fatal else f"warning: {finding.message}"
        rows.append([*[finding.source] * several, str(finding.row), finding.column, message])
    return table([*["source"] * several, "row", "column", "problem"], rows)
