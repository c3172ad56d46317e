"""`fasttune runs list | show | compare | rm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, ask, console, facts, print_json, say, table
from fasttune.cli.options import argument, flag, folder
from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from fasttune.runs import Run

group = typer.Typer(help="List, show, compare and delete runs.", no_args_is_help=True)
app.add_typer(group, name="runs")

Folder = Annotated[Path, folder("Folder of runs.")]
Anywhere = Annotated[
    Path | None, folder("Folder of runs. Default: runs; 'last' is then the newest anywhere.")
]
Names = Annotated[list[str], argument("Folders, names or 'last'.", metavar="RUN...")]


@group.command("list")
def list_(output: Folder = Path("runs"), as_json: options.Json = False) -> None:
    """List runs, oldest first."""
    from fasttune.runs import list_runs

    runs = list_runs(output)
    if as_json:
        print_json([_as_dict(run) for run in runs])
        return
    if not runs:
        console().print(f"no runs in {output}", markup=False)
        return
    rows: list[Sequence[str]] = []
    damaged = []
    for run in runs:
        try:
            manifest = run.manifest
            steps = str(manifest.get("steps", ""))
            started = manifest["started"][:16].replace("T", " ")
            rows.append((manifest["status"], steps, _losses(run.metrics()), started, run.name))
        except FasttuneError as error:
            rows.append(("damaged", "", "", "", run.name))
            damaged.append(error)
    console().print(table(("status", "steps", "held-out loss", "started", "run"), rows))
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
    from fasttune.files import shown
    from fasttune.runs import find_run

    kept = find_run(run, output)
    manifest = kept.manifest
    if as_json:
        settings = {"config": kept.config.as_dict(), "metrics": kept.metrics()}
        print_json({"run": str(kept.folder), **manifest, **settings})
        return
    out = console()
    template, data, lora = manifest["template"], manifest["data"], manifest["lora"]
    origin = f"{template['distribution'] or template['path']} {template['version']}".strip()
    lines = {
        "run": kept.folder,
        "status": manifest["status"],
        "template": f"{template['name']} ({origin}), identity {template['identity'][:12]}",
        "model": f"{shown(manifest['model'])}, {manifest['quantization']}, {manifest['dtype']}",
        "LoRA": f"{' '.join(lora['layers'])}, {lora['parameters'] / 1e6:.2f} M parameters",
        "data": f"{shown(data['source'])}: {data['train_rows']} rows, "
        f"{data['train_tokens']} tokens, {data['eval_rows']} held out",
        "device": manifest["device"],
        "held-out loss": _losses(kept.metrics()),
        "steps": manifest.get("steps", ""),
        "tokens/s": manifest.get("tokens_per_second", ""),
        "seconds": ", ".join(f"{k} {v}" for k, v in manifest.get("seconds", {}).items()),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }
    scores = manifest.get("scores", {})
    where = " (on training rows)" if manifest.get("scored") == "training" else ""
    for name, value in scores.get("after", {}).items():
        lines[f"{name}{where}"] = f"{scores['before'].get(name, math.nan):.2f} -> {value:.2f}"
    out.print(facts(lines))
    out.print(f"\n[bold]settings[/bold]\n{dump_config(kept.config)}", end="")


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
        console().print("the settings are the same")
    console().print(table(("", *(run.name for run in compared)), rows))


@group.command()
def rm(
    runs: Names,
    output: Anywhere = None,
    yes: Annotated[bool, flag("Do not ask.", "--yes", "-y")] = False,
) -> None:
    """Delete runs, with their adapters, checkpoints and exports."""
    from fasttune.runs.index import remove_runs

    removed = _named(runs, output)
    for run in removed:
        files = [path for path in run.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        say(f"{run.folder}: {len(files)} files, {size / 1e6:.1f} MB")
    if not (yes or ask(f"remove {len(removed)} run{'s' * (len(removed) > 1)}?")):
        raise FasttuneError("nothing was removed", ", ".join(runs), "answer y, or give --yes")
    remove_runs(removed)


def _named(names: list[str], output: Path | None) -> list[Run]:
    """The runs of these names, each once."""
    from fasttune.runs import find_run

    runs = (find_run(name, output) for name in names)
    return [*{run.folder.resolve(): run for run in runs}.values()]


def _losses(metrics: list[dict[str, Any]]) -> str:
    evaluated = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return f"{evaluated[0]:.4f} -> {evaluated[-1]:.4f}" if evaluated else ""
