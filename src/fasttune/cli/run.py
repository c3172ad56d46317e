"""`fasttune run`: train, resume, or show what would be trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli.app import app, console, plugins, print_json, say
from fasttune.cli.options import Columns, Config, Data, Model, Settings, TemplateName, overrides
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError
from fasttune.processes import count, first

if TYPE_CHECKING:
    from fasttune.encoding.encode import Encoded
    from fasttune.job import Job
    from fasttune.runs import Run


@app.command()
def run(
    context: typer.Context,
    settings: Settings = None,
    template: TemplateName = None,
    data: Data = None,
    columns: Columns = None,
    config: Config = None,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="Replace the template's system text.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for runs.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with an interrupted run: its folder, name or 'last'.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Resume although the rows, config.yaml or the template changed."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, first row and steps; load no model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fine-tune a model on a prompt format.

    Settings come from the defaults, then --config, then the command line.
    """
    from fasttune.config import load_config
    from fasttune.job import prepare
    from fasttune.runs import find_run
    from fasttune.start import train

    named = {"template": template, "system": system, "output": output}
    chosen = overrides(data, columns, model, settings or [], **named)
    if resume is not None:
        if chosen or config is not None:
            raise FasttuneError(
                "a resumed run keeps its settings",
                f"--resume {resume}",
                "leave out --config and all settings, or start a new run",
            )
        found = train(find_run(resume), plugins(context), force)
    else:
        job = prepare(load_config(config, chosen), plugins(context, config))
        if dry_run:
            if first():
                _dry_run(job, as_json)
            return
        found = train(job)
    if first():
        _finish(found, as_json)


def _dry_run(job: Job, as_json: bool) -> None:
    from fasttune import machine
    from fasttune.config import steps
    from fasttune.encoding.cache import encode_rows
    from fasttune.encoding.encode import describe_row
    from fasttune.models.tokenizer import load_tokenizer
    from fasttune.planning.forecast import foresee

    tokenizer = load_tokenizer(job.model, job.template.end)
    encoded = encode_rows(job.template, job.train, tokenizer, job.config, "training")
    planned = steps(len(encoded), job.config, count())
    spans = describe_row(encoded[0], tokenizer)
    plan = foresee(job.config, job.model, encoded.lengths, machine.this_device())
    if as_json:
        print_json(
            {
                "config": job.config.as_dict(),
                "model": job.model,
                "train_rows": len(encoded),
                "eval_rows": len(job.eval),
                "steps": planned,
                "first_row": spans,
                "plan": plan and plan.as_dict(),
            }
        )
    else:
        _show(job, encoded, spans, planned)
    if plan is not None:
        plan.require_fit()


def _show(job: Job, encoded: Sequence[Encoded], spans: list[dict[str, Any]], planned: int) -> None:
    from rich.markup import escape

    from fasttune.config import dump_config

    out = console()
    out.print(f"[bold]settings[/bold]\n{escape(dump_config(job.config))}", end="")
    out.print(f"\n[bold]first row[/bold], {len(encoded[0])} tokens ([green]+[/green] learned)")
    for span in spans:
        mark, style = ("+", "green") if span["train"] else (" ", "dim")
        out.print(
            f"{mark} {span['section']:<12} {json.dumps(span['text'], ensure_ascii=False)}",
            style=style,
            markup=False,
        )
        out.print(f"  {'':<12} {span['ids']}", style="dim", markup=False)
    out.print(
        f"\n{len(encoded)} rows to train on, {len(job.eval)} held out, "
        f"{job.skipped} skipped; {planned} steps of "
        f"{job.config.train.batch_size} x {job.config.train.gradient_accumulation} rows"
        + (f" in each of {count()} processes" if count() > 1 else "")
    )
    out.print(f"model: {job.model}", markup=False)


def _finish(found: Run, as_json: bool) -> None:
    manifest = found.manifest
    if as_json:
        print_json({"run": str(found.folder), **manifest})
    else:
        _summary(found)
    if manifest["status"] == "interrupted":
        say(f"interrupted; go on with: fasttune run --resume {found.folder}")
        raise typer.Exit(EXIT_INTERRUPTED)


def _summary(found: Run) -> None:
    out, manifest = console(), found.manifest
    evaluated = [line for line in found.metrics() if "eval_loss" in line]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        out.print(f"held-out loss  {first['eval_loss']:.4f} -> {last['eval_loss']:.4f}")
        for key in last:
            if key.startswith("eval_loss_") and key in first:
                name = key.removeprefix("eval_loss_")
                out.print(f"  {name:<12} {first[key]:.4f} -> {last[key]:.4f}")
    scores = manifest.get("scores", {})
    for name, value in scores.get("after", {}).items():
        out.print(f"{name:<14} {scores['before'].get(name, math.nan):.2f} -> {value:.2f}")
    out.print(
        f"{manifest['steps']} steps, {manifest['tokens_per_second']:.0f} tokens/s, "
        f"{manifest['seconds']['train']:.0f} s, "
        f"{manifest['peak_memory_bytes'] / 1e9:.1f} GB at the peak"
    )
    if saved := manifest["shared_tokens_saved"]:
        out.print(f"{saved:,} tokens of shared beginnings were not computed again")
    for file in ("loss.png", "samples.md", "answers.png", "adapter"):
        if (found.folder / file).exists():
            out.print(f"  {found.folder / file}", markup=False)
    if manifest["status"] == "done":
        out.print(f'try: fasttune generate {found.folder} "..."', markup=False)
