"""`fasttune runs list | show`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, print_json, say
from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from fasttune.runs import Run

group = typer.Typer(help="Look at the runs in a folder.", no_args_is_help=True)
app.add_typer(group, name="runs")

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder of runs.")]
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
def show(run: str, output: Folder = Path("runs"), as_json: AsJson = False) -> None:
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
    provider = f"{template['provider']} {template['version']}".strip()
    lines = {
        "run": found.folder,
        "status": manifest["status"],
        "template": f"{template['name']} ({provider}), rendering {template['rendering'][:12]}",
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


def _losses(metrics: list[dict[str, Any]]) -> str:
    evaluated = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return f"{evaluated[0]:.4f} -> {evaluated[-1]:.4f}" if evaluated else ""
