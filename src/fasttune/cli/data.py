"""Commands: data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.options import Columns, Config, Data, Model, Turns, overrides
from fasttune.config import Override, load_config
from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from fasttune.data.sources import Finding
    from fasttune.inspection.survey import Bin, Spread, Survey

SHOWN = 20
NEAR_ROWS = 50_000
"""Up to so many rows near-duplicates are counted unasked: it takes some 10 seconds."""


@app.command()
def data(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A .json, .jsonl, .csv, .tsv or .parquet file, the folder of a saved data set, or "
            "a name on the Hub. Without it: the data set that comes with fasttune.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            "-t",
            help="Prompt format.",
            show_default="the config's; chatml for conversations, reasoning if the rows have it, "
            "else alpaca",
        ),
    ] = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a folder or a Hub data set.", show_default="train")
    ] = None,
    turns: Turns = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, max=10**7, help="Tokens a row may have.", show_default="1024"),
    ] = None,
    eval_fraction: Annotated[
        float | None,
        typer.Option(help="Share of rows kept for evaluation.", show_default="0.05"),
    ] = None,
    near: Annotated[
        bool | None,
        typer.Option(
            help="Count rows that nearly repeat another; takes the extra dedup.",
            show_default=f"where that is installed, up to {NEAR_ROWS} rows",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check rows before training: problems, lengths, tokens, and the split.

    The exit status is 2 if a row cannot be used.
    """
    from fasttune.data.load import load, load_divided, shipped
    from fasttune.data.sources import Finding
    from fasttune.inspection.near import can_count, near_duplicates
    from fasttune.inspection.survey import default_template, survey
    from fasttune.models.tokenizer import load_tokenizer

    if source is not None and data is not None:
        raise FasttuneError("the rows are given twice", f"{source} --data {data}", "give one")
    given = overrides(data, columns, model, [], template=template)
    if source is not None:
        where = f"FILE {source!r}"
        given += [Override("data.train", source, where), Override("data.sources", (), where)]
    for key, option, value in (
        ("data.split", "--split", split),
        ("data.turns", "--turns", turns),
        ("model.max_length", "--max-length", max_length),
        ("data.eval_fraction", "--eval-fraction", eval_fraction),
    ):
        if value is not None:
            given.append(Override(key, value, f"{option} {value}"))
    settings = load_config(config, given)
    found = plugins(context, config)
    if template is None and config is None:
        rows = settings.data.train or shipped("train")
        chosen_split = settings.data.split if settings.data.train else "train"
        found_rows = load(
            rows, None, settings.data.columns, chosen_split, take=settings.data.turns
        ).rows
        name = default_template(found_rows)
        settings = replace(settings, template=name)
    chosen = found.template(settings.template).with_system(settings.system)
    divided = load_divided(settings.data, chosen)
    tokenizer = load_tokenizer(settings.model.name, chosen.end)
    length, fraction = settings.model.max_length, settings.data.eval_fraction
    figures = survey(divided, chosen, tokenizer, length, fraction)
    if near or (near is None and figures.good_rows <= NEAR_ROWS and can_count()):
        figures = replace(figures, near=near_duplicates(divided.sources[0]))
    findings = [Finding(**problem) for problem in figures.problems]
    if as_json:
        print_json(figures.as_dict())
    else:
        _show(console(), figures, findings)
    if figures.bad_rows:
        first = next(finding for finding in findings if finding.fatal)
        raise FasttuneError(
            f"{figures.bad_rows} of {figures.good_rows + figures.bad_rows} rows cannot be used",
            f"{figures.source}, the first: {first}",
            "fix these rows, or skip them in a run with data.skip_bad_rows=true",
        )


def _show(out: Console, figures: Survey, findings: list[Finding]) -> None:
    tokens = figures.tokens
    facts: dict[str, Any] = {
        "source": figures.source,
        "template": figures.template,
        "tokenizer": figures.tokenizer,
        "rows": f"{figures.good_rows} good, {figures.bad_rows} bad, "
        f"{figures.warnings} with a warning",
    }
    facts["written as"] = _counts(figures.forms)
    if figures.exchanges:
        facts["exchanges"] = "{min} to {max} a row, median {median:g}".format(
            **vars(figures.exchanges)
        )
    if figures.first_only:
        facts["exchanges"] = f"the first alone, where a row has more ({figures.first_only} of them)"
    if figures.proposed:
        facts["perhaps"] = " ".join(f"--map {o}={t}" for o, t in figures.proposed.items())
    if figures.languages:
        facts["languages"] = _counts(figures.languages)
    else:
        facts["scripts"] = _counts(figures.scripts)
    chosen = f"eval fraction {figures.eval_fraction:g}"
    facts["split"] = (
        f"{figures.train_rows} to train on, {figures.eval_rows} to evaluate "
        f"({'from a file of their own' if figures.eval_source else chosen})"
    )
    facts["nearly alike"] = _near(figures)
    facts["tokens"] = f"{tokens.total}, of which {tokens.trained_share:.1%} are trained"
    facts["too long"] = f"{tokens.overlong} rows of more than {tokens.max_length} tokens"
    out.print(_facts(facts), "", _lengths(figures), "", _bars(out, tokens.histogram))
    if findings:
        out.print("", _problems(findings))
        if len(findings) > SHOWN:
            out.print(f"and {len(findings) - SHOWN} more; --json has all of them")


def _near(figures: Survey) -> str:
    found = figures.near
    if found is None:
        return "not counted: pip install 'fasttune[dedup]', or --near for many rows"
    shown = "; ".join(f"{row} is like {other}" for row, other in found.examples)
    return f"{found.rows} row{'s' * (found.rows != 1)} like an earlier one" + (
        f", as {shown}" if shown else ""
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _table(*headings: str, right: Sequence[str] = ()) -> Table:
    """A table without lines, so that it looks the same in a log."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=any(headings))
    for heading in headings:
        side: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, justify=side, overflow="fold")
    return table


def _facts(facts: Mapping[str, str]) -> RenderableType:
    from rich.text import Text

    table = _table("", "")
    for name, fact in facts.items():
        table.add_row(Text(name, "bold"), Text(fact))
    return table


def _lengths(figures: Survey) -> RenderableType:
    from rich.text import Text

    def row(spread: Spread) -> list[str]:
        return [str(spread.min), f"{spread.median:g}", str(spread.p95), str(spread.max)]

    figured = ("filled", "min", "median", "p95", "max")
    table = _table("length of", "in", *figured, right=figured)
    for name, column in figures.columns.items():
        table.add_row(Text(name), "characters", str(column.rows), *row(column.characters))
    table.add_row("a row", "tokens", str(figures.good_rows), *row(figures.tokens.per_row))
    return table


def _bars(out: Console, histogram: list[Bin]) -> RenderableType:
    from rich.bar import Bar

    table = _table("tokens", "rows", "", right=("tokens", "rows"))
    most = max(bin.rows for bin in histogram)
    width = max(1, min(60, out.width - 24))
    for bin in histogram:
        bar: RenderableType = "#" * math.ceil(bin.rows / most * width)
        if out.is_terminal and not out.options.ascii_only:
            sliver = most / width / 8 if bin.rows else 0  # a single row shows, too
            bar = Bar(most, 0, max(bin.rows, sliver), width=width, color="cyan")
        span = f"{bin.low}-{bin.high}" if bin.low < bin.high else str(bin.low)
        table.add_row(span, str(bin.rows), bar)
    return table


def _problems(findings: list[Finding]) -> RenderableType:
    from rich.text import Text

    several = any(finding.source for finding in findings)
    table = _table(*["source"] * several, "row", "column", "problem")
    for finding in findings[:SHOWN]:
        message = finding.message if finding.fatal else f"warning: {finding.message}"
        source = [Text(finding.source)] * several
        table.add_row(*source, str(finding.row), Text(finding.column), Text(message))
    return table
