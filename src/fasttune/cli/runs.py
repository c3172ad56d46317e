"""`fasttune runs list | show | compare | rm`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, ask, console, print_json, say
from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from fasttune.runs import Run

group = typer.Typer(help="Look at runs, and remove them.", no_args_is_help=True)
app.add_typer(group, name="runs")

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder of runs.")]
Anywhere = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder of runs. Default: runs; 'last' is then the newest anywhere."
    ),
]
Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders, names or 'last'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@group.command("list")
def list_(output: Folder = Path("runs"), as_json: AsJson = False) -> None:
    """List runs, oldest first."""
    from rich.table import Table

    from fasttune.runs import list_runs

    found = list_runs(output)
    if as_json:
        print_json([_as_dict(run) for run in found])
        return
    if not found:
        console().print(f"no runs in {output}", markup=False)
        return
    table = Table("status", "steps", "held-out loss", "started", "run", box=None)
    damaged = []
    for run in found:
        try:
            manifest = run.manifest
            table.add_row(
                manifest["status"],
                str(manifest.get("steps", "")),
                _losses(run.metrics()),
                manifest["started"][:16].replace("T", " "),
                run.name,
            )
        except FasttuneError as error:
            table.add_row("damaged", "", "", "", run.name)
            damaged.append(error)
    console().print(table)
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
def show(run: str, output: Anywhere = None, as_json: AsJson = False) -> None:
    """Show a run: its folder, its name, or 'last'."""
    from fasttune.config import dump_config
    from fasttune.files import shown
    from fasttune.runs import find_run

    found = find_run(run, output)
    manifest = found.manifest
    if as_json:
        print_json(
            {
                "run": str(found.folder),
                **manifest,
                "config": found.config.as_dict(),
                "metrics": found.metrics(),
            }
        )
        return
    out = console()
    template, data, lora = manifest["template"], manifest["data"], manifest["lora"]
    origin = f"{template['distribution'] or template['path']} {template['version']}".strip()
    lines = {
        "run": found.folder,
        "status": manifest["status"],
        "template": f"{template['name']} ({origin}), identity {template['identity'][:12]}",
        "model": f"{shown(manifest['model'])}, {manifest['quantization']}, {manifest['dtype']}",
        "LoRA": f"{' '.join(lora['layers'])}, {lora['parameters'] / 1e6:.2f} M parameters",
        "data": f"{shown(data['source'])}: {data['train_rows']} rows, "
        f"{data['train_tokens']} tokens, {data['eval_rows']} held out",
        "device": manifest["device"],
        "held-out loss": _losses(found.metrics()),
        "steps": manifest.get("steps", ""),
        "tokens/s": manifest.get("tokens_per_second", ""),
        "seconds": ", ".join(f"{k} {v}" for k, v in manifest.get("seconds", {}).items()),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }
    for name, value in lines.items():
        out.print(f"[bold]{name:<14}[/bold]", end="")
        out.print(str(value), markup=False)
    scores = manifest.get("scores", {})
    for name, value in scores.get("after", {}).items():
        out.print(f"{name:<14}{scores['before'].get(name, math.nan):.2f} -> {value:.2f}")
    out.print(f"\n[bold]settings[/bold]\n{dump_config(found.config)}", end="")


@group.command()
def compare(runs: Names, output: Anywhere = None, as_json: AsJson = False) -> None:
    """Show in which settings runs differ, and what became of each.

    Which of them answers better is for `fasttune compare RUN RUN`.
    """
    from fasttune.runs.index import compare_settings

    found = _found(runs, output)
    if len(found) < 2:
        raise FasttuneError("one run has nothing to differ from", runs[0], "name two or more")
    differing = compare_settings(found)
    manifests = [run.manifest for run in found]
    became: dict[str, list[Any]] = {
        "status": [each["status"] for each in manifests],
        "steps": [each.get("steps") for each in manifests],
        "held-out loss": [_losses(run.metrics()) or None for run in found],
        "tokens/s": [each.get("tokens_per_second") for each in manifests],
    }
    if as_json:
        folders = [str(run.folder) for run in found]
        print_json({"runs": folders, "differences": differing, "results": became})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("", box=None)
    for run in found:
        table.add_column(Text(run.name))
    for key, values in [*differing.items(), *became.items()]:
        table.add_row(key, *(Text("-" if value is None else str(value)) for value in values))
    if not differing:
        console().print("the runs differ in no setting")
    console().print(table)


@group.command()
def rm(
    runs: Names,
    output: Anywhere = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs, with their adapters, checkpoints and exports."""
    from fasttune.runs.index import remove_runs

    found = _found(runs, output)
    for run in found:
        files = [path for path in run.folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        say(f"{run.folder}: {len(files)} files, {size / 1e6:.1f} MB")
    if not (yes or ask(f"remove {len(found)} run{'s' * (len(found) > 1)}?")):
        raise FasttuneError("nothing was removed", ", ".join(runs), "agree by y, or give --yes")
    remove_runs(found)


def _found(names: list[str], output: Path | None) -> list[Run]:
    """The runs of these names, each once."""
    from fasttune.runs import find_run

    found = {run.folder.resolve(): run for run in (find_run(name, output) for name in names)}
    return [*found.values()]


def _losses(metrics: list[dict[str, Any]]) -> str:
    evaluated = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return f"{evaluated[0]:.4f} -> {evaluated[-1]:.4f}" if evaluated else ""
