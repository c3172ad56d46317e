"""`fasttune run`: train, resume, or show what would be trained."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasttune.cli import options
from fasttune.cli.app import app, console, plugins, print_json, say
from fasttune.cli.options import expand, flag, option
from fasttune.errors import EXIT_INTERRUPTED, FasttuneError
from fasttune.processes import count, first

if TYPE_CHECKING:
    from fasttune.job import Job
    from fasttune.runs import Run


@app.command()
@expand
def run(
    context: typer.Context,
    settings: options.AllSettings,
    system: options.System = None,
    output: Annotated[str | None, option("Folder for runs.", "--output", "-o")] = None,
    resume: Annotated[str | None, option("Resume a run: its folder, name or 'last'.")] = None,
    force: Annotated[
        bool, flag("Resume even if config.yaml or the template changed.", "--force")
    ] = False,
    dry_run: Annotated[
        bool, flag("Show settings, first row and steps; load no model.", "--dry-run")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on a prompt format.

    Settings come from the defaults, then --config, then the command line.
    """
    from fasttune.config import load_config
    from fasttune.job import prepare
    from fasttune.runs import find_run
    from fasttune.start import train

    given = settings.overrides({"system": system, "output": output})
    if resume is not None:
        if given or settings.config is not None:
            raise FasttuneError(
                "a resumed run keeps its settings",
                f"--resume {resume}",
                "leave out --config and all settings, or start a new run",
            )
        trained = train(find_run(resume), plugins(context), force)
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
    from fasttune.config import steps
    from fasttune.encoding.cache import encode_rows
    from fasttune.models.tokenizer import load_tokenizer
    from fasttune.planning.forecast import foresee

    tokenizer = load_tokenizer(job.model, job.template.end)
    encoded = encode_rows(job.template, job.train, tokenizer, job.config, "training")
    spans = []
    for span in encoded[0].spans:
        ids = encoded[0].input_ids[span.start : span.end]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        spans.append({"section": span.name, "train": span.train, "ids": ids, "text": text})
    facts = {
        "config": job.config.as_dict(),
        "model": job.model,
        "train_rows": len(encoded),
        "eval_rows": len(job.eval),
        "steps": steps(len(encoded), job.config, count()),
        "first_row": spans,
    }
    plan = foresee(job.config, job.model, encoded.lengths, machine.this_device())
    if as_json:
        print_json({**facts, "plan": plan and plan.as_dict()})
    else:
        _show(job, facts)
    if plan is not None:
        plan.require_fit()


def _show(job: Job, facts: dict[str, Any]) -> None:
    from rich.markup import escape

    from fasttune.config import dump_config

    out, spans = console(), facts["first_row"]
    out.print(f"[bold]settings[/bold]\n{escape(dump_config(job.config))}", end="")
    tokens = sum(len(span["ids"]) for span in spans)
    out.print(f"\n[bold]first row[/bold], {tokens} tokens ([green]+[/green] learned)")
    for span in spans:
        mark, style = ("+", "green") if span["train"] else (" ", "dim")
        text = json.dumps(span["text"], ensure_ascii=False)
        out.print(f"{mark} {span['section']:<12} {text}", style=style, markup=False)
        out.print(f"  {'':<12} {span['ids']}", style="dim", markup=False)
    train = job.config.train
    out.print(
        f"\n{facts['train_rows']} rows to train on, {len(job.eval)} held out, "
        f"{job.skipped} skipped; {facts['steps']} steps of "
        f"{train.batch_size} x {train.gradient_accumulation} rows"
        + (f" in each of {count()} processes" if count() > 1 else "")
    )
    out.print(f"model: {job.model}", markup=False)


def _finish(trained: Run, as_json: bool) -> None:
    manifest = trained.manifest
    if as_json:
        print_json({"run": str(trained.folder), **manifest})
    else:
        _summary(trained)
    if manifest["status"] == "interrupted":
        say(f"interrupted; go on with: fasttune run --resume {trained.folder}")
        raise typer.Exit(EXIT_INTERRUPTED)


def _summary(trained: Run) -> None:
    out, manifest = console(), trained.manifest
    evaluated = [line for line in trained.metrics() if "eval_loss" in line]
    if evaluated:
        start, end = evaluated[0], evaluated[-1]
        out.print(f"held-out loss  {start['eval_loss']:.4f} -> {end['eval_loss']:.4f}")
        for key in end:
            if key.startswith("eval_loss_") and key in start:
                name = key.removeprefix("eval_loss_")
                out.print(f"  {name:<12} {start[key]:.4f} -> {end[key]:.4f}")
    scores = manifest.get("scores", {})
    if scores and manifest.get("scored") == "training":
        out.print("no rows are held out: what follows is measured on training rows")
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
        if (trained.folder / file).exists():
            out.print(f"  {trained.folder / file}", markup=False)
    if manifest["status"] == "done":
        out.print(f'try: fasttune generate {trained.folder} "..."', markup=False)
