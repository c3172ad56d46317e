"""`fasttune run`: train, resume, or show what would be trained; `runs`: list and delete them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, ask, facts, plugins, print_json, say, table
from fasttune.cli.options import argument, expand, flag, folder, option
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError
from fasttune.processes import count, first
from fasttune.runs import find_run, list_runs
from fasttune.runs.folder import changes
from fasttune.terminal import console, echo

if TYPE_CHECKING:
    from rich.table import Table

    from fasttune.job import Job
    from fasttune.runs import Run


@app.command()
@expand
def run(
    context: typer.Context,
    settings: options.AllSettings,
    system: options.System = None,
    output: Annotated[str | None, option("Folder for runs.", "--output", "-o")] = None,
    resume: Annotated[
        str | None,
        option(
            "Resume a run: its folder, name or 'last'. With train.epochs or train.max_steps, "
            "continue one that is done."
        ),
    ] = None,
    force: Annotated[
        bool, flag("Resume even if config.yaml or the template changed.", "--force")
    ] = False,
    dry_run: Annotated[
        bool, flag("Show settings, first row and steps; load no model.", "--dry-run")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on a prompt format.

    Settings come from the defaults, then --config, then the command line; `fasttune config` shows
    all of them.

    Example: fasttune run -t alpaca -d rows.jsonl train.epochs=3 train.learning_rate=1e-4
    """
    from fasttune.config import load_config
    from fasttune.job import prepare
    from fasttune.start import train

    given = settings.overrides({"system": system, "output": output})
    if resume is not None:
        if settings.config is not None:
            raise FasttuneError(
                "a resumed run keeps its settings",
                f"--resume {resume} --config {settings.config}",
                "leave out --config, or start a new run",
            )
        trained = train(find_run(resume), plugins(context), force, given)
    else:
        job = prepare(load_config(settings.config, given), plugins(context, settings.config))
        if dry_run:
            if first():
                _dry_run(job, as_json)
            return
        trained = train(job)
    if first():
        _finish(trained, as_json)


def _dry_run(job: Job, as_json: bool) -> None:
    from fasttune import machine
    from fasttune.encoding.cache import encode_rows
    from fasttune.models.tokenizer import load_tokenizer
    from fasttune.planning.forecast import foresee
    from fasttune.planning.schedule import settle, steps

    tokenizer = load_tokenizer(job.model, job.template.end)
    encoded = encode_rows(job.template, job.train, tokenizer, job.config, "training")
    job = replace(job, config=settle(job.config, job.model, len(encoded), count()))
    spans = []
    for span in encoded[0].spans:
        ids = encoded[0].input_ids[span.start : span.end]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        spans.append({"section": span.name, "train": span.train, "ids": ids, "text": text})
    values = {
        "config": job.config.as_dict(),
        "model": job.model,
        "train_rows": len(encoded),
        "eval_rows": len(job.eval),
        "steps": steps(len(encoded), job.config, count()),
        "first_row": spans,
    }
    plan = foresee(job.config, job.model, encoded.lengths, machine.this_device())
    if as_json:
        print_json({**values, "plan": plan and plan.as_dict()})
    else:
        _show_dry_run(job, values)
    if plan is not None:
        plan.require_fit()


def _show_dry_run(job: Job, values: dict[str, Any]) -> None:
    from fasttune.config import dump_config

    out, spans = console(), values["first_row"]
    out.print("settings", style="bold")
    echo(dump_config(job.config), end="")
    tokens = sum(len(span["ids"]) for span in spans)
    out.print(f"\nfirst row, {tokens} tokens (+ learned)", style="bold")
    for span in spans:
        mark, style = ("+", "green") if span["train"] else (" ", "dim")
        text = json.dumps(span["text"], ensure_ascii=False)
        out.print(f"{mark} {span['section']:<12} {text}", style=style)
        out.print(f"  {'':<12} {span['ids']}", style="dim")
    train = job.config.train
    out.print(
        f"\n{values['train_rows']} rows to train on, {len(job.eval)} held out, "
        f"{job.skipped} skipped; {values['steps']} steps of "
        f"{train.batch_size} x {train.gradient_accumulation} rows"
        + (f" in each of {count()} processes" if count() > 1 else "")
    )
    echo(f"model: {job.model}")


def _finish(trained: Run, as_json: bool) -> None:
    manifest = trained.manifest
    if as_json:
        print_json({"run": str(trained.folder), **manifest})
    else:
        _summary(trained)
    if manifest["status"] == "interrupted":
        say(f"interrupted; resume it: fasttune run --resume {shlex.quote(str(trained.folder))}")
        raise typer.Exit(EXIT_INTERRUPTED)


def _summary(trained: Run) -> None:
    out, manifest = console(), trained.manifest
    if manifest.get("scores") and manifest.get("scored") == "training":
        echo("no rows are held out: the answers are on training rows")
    if figures := _changes(trained):
        out.print(figures)
    out.print(
        f"{manifest['steps']} steps, {manifest['tokens_per_second']:.0f} tokens/s, "
        f"{manifest['seconds']['train']:.0f} s, "
        f"{manifest['peak_memory_bytes'] / 1e9:.1f} GB at the peak"
    )
    if saved := manifest["shared_tokens_saved"]:
        out.print(f"{saved:,} tokens of shared beginnings were not computed again")
    for file in ("loss.png", "samples.md", "answers.png", "adapter"):
        if (trained.folder / file).exists():
            echo(f"  {trained.folder / file}")
    if manifest["status"] == "done":
        echo(f'try: fasttune generate {shlex.quote(str(trained.folder))} "..."')


group = typer.Typer(help="List, show, compare and delete runs.", no_args_is_help=True)
app.add_typer(group, name="runs")

Folder = Annotated[Path, folder("Folder of runs.")]
Anywhere = Annotated[
    Path | None, folder("Folder of runs. Default: runs; 'last' is then the newest anywhere.")
]
WHOLE = 10_000
"""Columns of a console that cuts and folds no line."""
Names = Annotated[list[str], argument("Folders, names or 'last'.", metavar="RUN...")]


@group.command("list")
def list_(output: Folder = Path("runs"), as_json: options.Json = False) -> None:
    """List runs, oldest first."""

    runs = list_runs(output)
    if as_json:
        print_json([_as_dict(run) for run in runs])
        return
    if not runs:
        echo(f"no runs in {output}")
        return
    rows: list[Sequence[str]] = []
    damaged = []
    for run in runs:
        try:
            manifest = run.manifest
            steps = str(manifest.get("steps", ""))
            rows.append((run.name, manifest["status"], steps, _losses(run.metrics())))
        except FasttuneError as error:
            rows.append((run.name, "damaged", "", ""))
            damaged.append(error)
    out = console()
    out.width = WHOLE  # a name that is cut or folded cannot be copied
    out.print(table(("run", "status", "steps", "held-out loss"), rows))
    for each in damaged:
        say(f"{each.message}: {each.where}\n  what to do: {each.hint}")


def _as_dict(run: Run) -> dict[str, Any]:
    try:
        run.metrics()
        return {"run": str(run.folder), **run.manifest}
    except FasttuneError as error:
        why = f"{error.message}: {error.where}"
        return {"run": str(run.folder), "status": "damaged", "problem": why}


@group.command()
def show(run: str, output: Anywhere = None, as_json: options.Json = False) -> None:
    """Show a run: its folder, its name, or 'last'."""
    from fasttune.config import dump_config
    from fasttune.files import short_path

    kept = find_run(run, output)
    manifest = kept.manifest
    if as_json:
        settings = {"config": kept.config.as_dict(), "metrics": kept.metrics()}
        print_json({"run": str(kept.folder), **manifest, **settings})
        return
    out = console()
    template, data, lora = manifest["template"], manifest["data"], manifest["lora"]
    model = short_path(manifest["model"])
    base = "in NF4" if manifest["quantization"] == "nf4" else "not quantised"
    origin = f"{template['distribution'] or template['path']} {template['version']}".strip()
    lines = {
        "run": kept.folder,
        "status": manifest["status"],
        "template": f"{template['name']} ({origin}), identity {template['identity'][:12]}",
        "model": f"{model}, {base}, {manifest['dtype']}",
        "LoRA": f"{' '.join(lora['layers'])}, {lora['parameters'] / 1e6:.2f} M parameters",
        "data": f"{short_path(data['source'])}: {data['train_rows']} rows, "
        f"{data['train_tokens']} tokens, {data['eval_rows']} held out",
        "device": manifest["device"],
        "steps": manifest.get("steps", ""),
        "tokens/s": manifest.get("tokens_per_second", ""),
        "seconds": ", ".join(f"{k} {v}" for k, v in manifest.get("seconds", {}).items()),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }
    out.print(facts(lines))
    if figures := _changes(kept):
        out.print()
        out.print(figures)
    out.print("\nsettings", style="bold")
    echo(dump_config(kept.config), end="")


@group.command()
def compare(runs: Names, output: Anywhere = None, as_json: options.Json = False) -> None:
    """Show the settings in which runs differ, and their results.

    `fasttune compare RUN RUN` measures which one answers better.
    """
    from fasttune.runs.index import compare_settings

    compared = _named(runs, output)
    if len(compared) < 2:
        raise FasttuneError("comparing needs two runs", runs[0], "name two or more")
    differing = compare_settings(compared)
    manifests = [run.manifest for run in compared]
    results: dict[str, list[Any]] = {
        "status": [each["status"] for each in manifests],
        "steps": [each.get("steps") for each in manifests],
        "held-out loss": [_losses(run.metrics()) or None for run in compared],
        "tokens/s": [each.get("tokens_per_second") for each in manifests],
    }
    if as_json:
        folders = [str(run.folder) for run in compared]
        print_json({"runs": folders, "differences": differing, "results": results})
        return
    rows = [
        (key, *("-" if value is None else str(value) for value in values))
        for key, values in [*differing.items(), *results.items()]
    ]
    if not differing:
        echo("the settings are the same")
    console().print(table(("", *(run.name for run in compared)), rows))


@group.command()
def rm(
    runs: Names,
    output: Anywhere = None,
    yes: Annotated[bool, flag("Do not ask.", "--yes", "-y")] = False,
) -> None:
    """Delete runs, with their adapters, checkpoints and exports."""
    from fasttune.runs.index import remove_runs, require_removable

    removed = _named(runs, output)
    require_removable(removed)
    for run in removed:
        files = [path for path in run.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        say(f"{run.folder}: {len(files)} files, {size / 1e6:.1f} MB")
    if not (yes or ask(f"remove {len(removed)} run{'s' * (len(removed) > 1)}?")):
        raise FasttuneError("nothing was removed", ", ".join(runs), "answer y, or give --yes")
    remove_runs(removed)


def _named(names: list[str], output: Path | None) -> list[Run]:
    """The runs of these names, each once."""

    runs = (find_run(name, output) for name in names)
    return [*{run.folder.resolve(): run for run in runs}.values()]


def _losses(metrics: list[dict[str, Any]]) -> str:
    evaluated = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return f"{evaluated[0]:.4f} -> {evaluated[-1]:.4f}" if evaluated else ""


def _changes(run: Run) -> Table | None:
    """The losses and scores of a run before and after training, if it has any."""
    found = changes(run.metrics(), run.manifest)
    headings = ("figure", "before training", "after", "better")
    return table(headings, found, right=headings[1:3]) if found else None
