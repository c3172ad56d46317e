"""`fasttune bench`: the same work by plain transformers, Unsloth or TRL, and fasttune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, plugins, print_json, table
from fasttune.cli.options import expand, flag, folder, number, option, words
from fasttune.config import Override
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.terminal import console

ARMS = "plain,unsloth,fasttune"
ALL_ARMS = (*ARMS.split(","), "fast_path")
ROWS = {"train": 128, "generate": 32, "prepare": None}
"""Rows of each kind of work by default; None: all."""


@app.command()
@expand
def bench(
    context: typer.Context,
    settings: options.AllSettings,
    what: Annotated[str, option("What to measure: train, generate or prepare.")] = "train",
    rows: Annotated[
        int | None, number("Rows. Default: 128 to train on, 32 to answer, all to prepare.")
    ] = None,
    rounds: Annotated[int, number("Rounds of generate and prepare.", most=1000)] = 3,
    block: Annotated[
        int, number("Steps that an arm of train takes at a time; the first block warms up.")
    ] = 4,
    arms: Annotated[
        str, option("Arms of train: plain, unsloth, fasttune, fast_path (with model.fast_path=on).")
    ] = ARMS,
    notebook_checkpointing: Annotated[
        bool, flag("Checkpoint Unsloth's arm as its notebooks do.", "--notebook-checkpointing")
    ] = False,
    output: Annotated[Path | None, folder("Folder. Default: a new one below bench/.")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare the speed of training, answering or preparing rows with other programs.

    train: plain transformers, Unsloth and fasttune, with the same rows in the same order and the
    same initial adapters; they take turns, each in its own process. generate: transformers'
    pipeline, plain batches and fasttune, with samples.batch_size and samples.max_new_tokens.
    prepare: TRL and fasttune. No rows are held out, and no run folder is written.
    """
    names = _names(arms)
    if what not in ROWS:
        raise FasttuneError(f"cannot measure '{what}'", "--what", f"choose from: {', '.join(ROWS)}")
    limit = rows or ROWS[what]
    from fasttune.config import load_config
    from fasttune.job import prepare

    given = [Override("data.eval_fraction", 0), Override("train.epochs", 1), *settings.overrides()]
    if limit:
        given.insert(0, Override("data.limit", limit, f"--rows {limit}"))
    job = prepare(load_config(settings.config, given), plugins(context, settings.config))
    if what == "train":
        from fasttune.benchmark.turns import bench_train

        target, result = bench_train(job, names, block, notebook_checkpointing, output)
    else:
        from fasttune.benchmark.rounds import bench_rounds

        target, result = bench_rounds(what, job, rounds, output)
    if as_json:
        print_json({"folder": str(target), **result})
    else:
        (_show if what == "train" else _show_rounds)(target, result)


def _names(arms: str) -> list[str]:
    names = list(dict.fromkeys(words(arms)))
    for name in names:
        if name not in ALL_ARMS:
            hint = did_you_mean(name, ALL_ARMS)
            raise FasttuneError(f"there is no arm '{name}'", "--arms", hint)
    if not names:
        raise FasttuneError("no arm is given", "--arms", f"choose from: {', '.join(ALL_ARMS)}")
    return names


def _show(target: Path, result: dict[str, Any]) -> None:
    from fasttune.benchmark.figures import reference_of

    arms, model, device = result["arms"], Path(result["model"]).name, result["device"]
    reference = reference_of(list(arms))
    cells = {arm: _figures(values, reference) for arm, values in arms.items()}
    _print(
        f"{model}, {result['quantization']}, {result['precision']}, {device}: {result['steps']} "
        f"steps of {result['rows_per_step']} rows, the first {result['warmup_steps']} not counted",
        cells,
        "tokens/s: median of blocks, padding not counted; s/step: median of steps; "
        "final loss: mean of the last quarter",
        "gradient checkpointing: "
        + ", ".join(f"{arm} {values['gradient_checkpointing']}" for arm, values in arms.items()),
        "warm-up: "
        + ", ".join(f"{arm} {values['warmup_seconds']:.1f} s" for arm, values in arms.items()),
        f"  {target / 'bench.json'}",
        f"  {target / 'bench.png'}",
    )


def _show_rounds(target: Path, result: dict[str, Any]) -> None:
    arms, rows = result["arms"], result["data"]["rows"]
    cells = {}
    for arm, values in arms.items():
        speed, ratio = values["rows_per_second"], {f"x {[*arms][0]}": f"{values['speedup']:.2f}"}
        if result["what"] == "generate":
            same = f"{values['same_answers']} of {rows}"
            cells[arm] = {"rows/min": f"{60 * speed:.1f}", **ratio, "as the pipeline": same}
        else:
            cells[arm] = {"rows/s": f"{speed:.1f}", **ratio, "tokens": str(values["tokens"])}
    _print(
        f"{result['what']}: {rows} rows, {Path(result['model']).name}, {result['device']}",
        cells,
        "medians of the rounds; ratios are taken within each round",
        f"  {target / 'bench.json'}",
    )


def _figures(values: dict[str, Any], reference: str) -> dict[str, str]:
    speedup, difference = values["speedup"], values["final_loss_difference"]
    return {
        "tokens/s": f"{values['tokens_per_second']:.1f}",
        "s/step": f"{values['seconds_per_step']:.3f}",
        f"x {reference}": f"{speedup['median']:.2f}",
        "lowest … highest": f"{speedup['low']:.2f} … {speedup['high']:.2f}",
        "peak memory": f"{values['peak_memory_bytes'] / 1e9:.2f} GB",
        "first loss": f"{values['first_loss']:.4f}",
        "final loss": f"{values['final_loss']:.4f}",
        "to plain": "-" if difference is None else f"{100 * difference:+.2f} %",
    }


def _print(heading: str, cells: dict[str, dict[str, str]], *notes: str) -> None:
    """Print a table with a line for each arm, between a heading and notes."""
    out = console()
    out.print(heading)
    headings = [*next(iter(cells.values()))]
    rows = [(arm, *line.values()) for arm, line in cells.items()]
    out.print(table(("", *headings), rows, headings))
    for note in notes:
        out.print(note)
