"""`fasttune bench`: the same work by plain transformers, Unsloth or TRL, and by fasttune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, plugins, print_json
from fasttune.cli.options import Columns, Config, Data, Model, TemplateName, overrides
from fasttune.config import Override
from fasttune.errors import FasttuneError, did_you_mean

if TYPE_CHECKING:
    from fasttune.job import Job

ARMS = "plain,unsloth,fasttune"
ALL_ARMS = (*ARMS.split(","), "fast_path")
ROWS = {"train": 128, "generate": 32, "prepare": None}
"""How many are taken of what can be measured."""


@app.command()
def bench(
    context: typer.Context,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Any setting as KEY=VALUE, for instance model.quantization=nf4."),
    ] = None,
    template: TemplateName = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    what: Annotated[
        str, typer.Option(help="What to measure: train, generate or prepare.")
    ] = "train",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**6,
            help="Take the first rows, this many. Default: 128 to train on, 32 to answer, all to "
            "prepare.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Of generate and prepare.")] = 3,
    block: Annotated[
        int,
        typer.Option(
            min=1, max=10**6, help="Of train: steps an arm takes at a time; the first warms up."
        ),
    ] = 4,
    arms: Annotated[
        str,
        typer.Option(
            help="Of train: some of plain, unsloth, fasttune and fast_path, which is fasttune with "
            "model.fast_path=on."
        ),
    ] = ARMS,
    notebook_checkpointing: Annotated[
        bool,
        typer.Option(
            "--notebook-checkpointing",
            help="Unsloth's arm checkpoints as its notebooks do. Default: as fasttune's arm.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. Default: a new one below bench/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the speed of training, answering or preparing rows against other ways to it.

    train: plain transformers, Unsloth, fasttune. The same rows in the same order, with the same
    adapters at the start; in turns, each in a process of its own. generate: transformers' pipeline,
    plain batches, fasttune, with samples.batch_size and samples.max_new_tokens. prepare: TRL's
    preparation, fasttune's. Nothing is held out, and no run folder is written.
    """
    names = _names(arms)
    if what not in ROWS:
        raise FasttuneError(
            f"there is no '{what}' to measure", "--what", f"one of {', '.join(ROWS)}"
        )
    taken = rows or ROWS[what]
    from fasttune.config import load_config
    from fasttune.job import prepare

    resolved = load_config(
        config,
        [
            *([Override("data.limit", taken, f"--rows {taken}")] if taken else []),
            Override("data.eval_fraction", 0),
            *overrides(data, columns, model, settings or [], template=template),
        ],
    )
    job = prepare(resolved, plugins(context, config))
    if what != "train":
        folder, result = _in_rounds(what, job, rounds, output)
        if as_json:
            print_json({"folder": str(folder), **result})
        else:
            _show_rounds(folder, result)
        return
    from fasttune.benchmark.turns import bench_train

    folder, result = bench_train(job, names, block, notebook_checkpointing, output)
    if as_json:
        print_json({"folder": str(folder), **result})
    else:
        _show(folder, result)


def _names(arms: str) -> list[str]:
    names = list(dict.fromkeys(word.strip() for word in arms.split(",") if word.strip()))
    for name in names:
        if name not in ALL_ARMS:
            hint = did_you_mean(name, ALL_ARMS)
            raise FasttuneError(f"there is no arm '{name}'", "--arms", hint)
    if not names:
        raise FasttuneError("no arm is left", "--arms", f"some of {', '.join(ALL_ARMS)}")
    return names


def _in_rounds(
    what: str, job: Job, rounds: int, output: Path | None
) -> tuple[Path, dict[str, Any]]:
    from fasttune.benchmark.rounds import bench_rounds
    from fasttune.models.unsloth import import_unsloth

    if what == "generate":
        import_unsloth()  # before transformers and PEFT
        from fasttune.benchmark.generating import measure_generation as measure
    else:
        from fasttune.benchmark.preparing import measure_preparation as measure
    return bench_rounds(what, measure, job, rounds, output)


def _show_rounds(folder: Path, result: dict[str, Any]) -> None:
    from rich.table import Table

    out, arms = console(), result["arms"]
    rows, first = result["data"]["rows"], next(iter(arms))
    out.print(
        f"{result['what']}: {rows} rows, {Path(result['model']).name}, {result['device']}",
        markup=False,
    )
    answered = result["what"] == "generate"
    table = Table("", box=None, padding=(0, 2, 0, 0))
    headings = ("rows/min", "as the pipeline") if answered else ("rows/s", "tokens")
    for heading in (headings[0], f"x {first}", headings[1]):
        table.add_column(heading, justify="right")
    for arm, values in arms.items():
        speed = values["rows_per_second"] * (60 if answered else 1)
        last = f"{values['same_answers']} of {rows}" if answered else str(values["tokens"])
        table.add_row(arm, f"{speed:.1f}", f"{values['speedup']:.2f}", last)
    out.print(table)
    out.print("medians of the rounds, the ratios of each round's own")
    out.print(f"  {folder / 'bench.json'}", markup=False)


def _show(folder: Path, result: dict[str, Any]) -> None:
    from rich.table import Table

    from fasttune.benchmark.figures import reference_of

    arms = result["arms"]
    out = console()
    out.print(
        f"{Path(result['model']).name}, {result['quantization']}, {result['precision']}, "
        f"{result['device']}: {result['steps']} steps of {result['rows_per_step']} rows, the "
        f"first {result['warmup_steps']} not counted",
        markup=False,
    )
    reference = reference_of(list(arms))
    table = Table("", box=None, padding=(0, 2, 0, 0))
    for heading in (
        "tokens/s", "s/step", f"x {reference}", "lowest … highest", "peak memory", "first loss",
        "final loss", "to plain",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for arm, values in arms.items():
        speedup, difference = values["speedup"], values["final_loss_difference"]
        table.add_row(
            arm,
            f"{values['tokens_per_second']:.1f}",
            f"{values['seconds_per_step']:.3f}",
            f"{speedup['median']:.2f}",
            f"{speedup['low']:.2f} … {speedup['high']:.2f}",
            f"{values['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{values['first_loss']:.4f}",
            f"{values['final_loss']:.4f}",
            "-" if difference is None else f"{100 * difference:+.2f} %",
        )
    out.print(table)
    out.print(
        "tokens/s: median of blocks, padding not counted; s/step: median of steps; "
        "final loss: mean of the last quarter"
    )
    told = {arm: values["gradient_checkpointing"] for arm, values in arms.items()}
    out.print("gradient checkpointing: " + ", ".join(f"{arm} {word}" for arm, word in told.items()))
    warmups = {arm: values["warmup_seconds"] for arm, values in arms.items()}
    out.print("warm-up: " + ", ".join(f"{arm} {seconds:.1f} s" for arm, seconds in warmups.items()))
    for file in ("bench.json", "bench.png"):
        out.print(f"  {folder / file}", markup=False)
