"""Resuming a run: from which checkpoint, with which settings, and what must not have changed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fasttune.config import Override, RunConfig, flatten, load_config, parse_override, with_training
from fasttune.errors import FasttuneError
from fasttune.files import LEFTOVER, SEAL, check_seal, require_no_links, write_text
from fasttune.records import TrainerState, read_json, read_metrics
from fasttune.runs.folder import Run, step_of

log = logging.getLogger(__name__)

LENGTH = ("train.epochs", "train.max_steps")
"""The settings that a resumed run may change."""
CHECKPOINT_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "trainer_state.json",
)
"""Without any of these, a resumed run would have other losses than an unbroken one."""


def require_resumable(
    run: Run, force: bool = False, longer: Sequence[str | Override] = ()
) -> RunConfig:
    """Return the settings to continue with.

    Args:
        longer: new values of LENGTH, with which a run that is done continues.

    Raises:
        FasttuneError: the run is done and not `longer`, or has no checkpoint to continue from; all
            its checkpoints are damaged; or, without `force`, its config.yaml was edited.
    """
    given = [parse_override(each) if isinstance(each, str) else each for each in longer]
    if others := [each.key for each in given if each.key not in LENGTH]:
        raise FasttuneError(
            f"a resumed run keeps its settings, except {' and '.join(LENGTH)}",
            f"--resume {run.name}, {', '.join(others)}",
            "leave these out, or start a new run",
        )
    require_no_links(run.folder, f"run '{run.name}'")
    newest, _ = _newest_whole(run)
    if run.manifest["status"] == "done" and run.adapter.is_dir():
        if not given:
            hint = f"to train on: fasttune run --resume {run.folder} train.epochs=N"
            raise FasttuneError(f"run '{run.name}' is done", str(run.folder), hint)
        if newest is None:
            raise FasttuneError(
                f"run '{run.name}' has no checkpoint to continue from",
                str(run.checkpoints),
                "restore one, or start a new run with more train.epochs",
            )
    config = _unedited(run, force)
    if given:
        if "train.max_steps" not in [each.key for each in given]:
            config = with_training(config, max_steps=None)  # it would override the epochs
        config = load_config(None, given, base=config)
    return config


def _unedited(run: Run, force: bool) -> RunConfig:
    """The settings in the run's config.yaml. Changed ones are refused, unless with `force`."""
    began = run.config
    try:
        config = load_config(run.folder / "config.yaml")
    except FasttuneError as error:
        if force:
            return began
        hint = "restore it, or use --force to continue as the run began"
        raise FasttuneError(error.message, error.where, hint) from error
    before, after = flatten(began.as_dict()), flatten(config.as_dict())
    edited = [f"{k}: {before[k]!r} became {after[k]!r}" for k in after if before[k] != after[k]]
    if edited and not force:
        raise FasttuneError(
            "config.yaml has changed since the run began",
            "\n".join([str(run.folder / "config.yaml"), *edited]),
            "undo these changes, or use --force to continue with the new settings",
        )
    if rows := [line for line in edited if line.startswith("data.")]:
        log.warning("note: a resumed run keeps its rows; ignored: %s", ", ".join(rows))
    return config


def last_checkpoint(run: Run) -> Path | None:
    """Return the newest complete checkpoint, or None if there is none at all, with a warning for
    each newer one that is damaged. It is an error if all are."""
    folder, problems = _newest_whole(run)
    if folder is not None:
        for problem in problems:
            log.warning("warning: %s (%s); using %s", problem.message, problem.where, folder.name)
    return folder


def usable(run: Run) -> Run:
    """The run itself, or its newest complete checkpoint if the run did not finish. What is not a
    finished run is logged."""
    manifest = run.manifest
    if run.checkpoint is None and manifest["status"] not in ("done", "nothing learned"):
        newest = last_checkpoint(run)
        run = replace(run, checkpoint=newest.name if newest else None)
    if run.checkpoint is not None:
        log.warning("note: this is %s; the status of the run is %s", run.label, manifest["status"])
    return run


def _newest_whole(run: Run) -> tuple[Path | None, list[FasttuneError]]:
    """The newest complete checkpoint, and what is wrong with newer ones."""
    problems: list[FasttuneError] = []
    for folder in checkpoints_of(run):
        if not os.path.lexists(folder / SEAL):
            continue  # it was being written when the run ended
        try:
            check_checkpoint(folder, "restore it, or delete it: --resume uses the one before")
        except FasttuneError as error:
            problems.append(error)
        else:
            return folder, problems
    if problems:
        raise FasttuneError(
            "every checkpoint of the run is damaged",
            "\n".join(f"{problem.where}: {problem.message}" for problem in problems),
            f"restore one; or delete {run.checkpoints}, and --resume restarts from the first step",
        )
    return None, []


def checkpoints_of(run: Run) -> list[Path]:
    """All of them, complete or not, newest first."""
    folders = [p for p in run.checkpoints.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0]
    return sorted(folders, key=step_of, reverse=True)


def check_checkpoint(folder: Path, hint: str) -> None:
    """Refuse a checkpoint that is incomplete, or from which a run would continue differently."""
    needed = CHECKPOINT_FILES if check_seal(folder, folder.name, hint) else (SEAL,)
    missing = [name for name in needed if not any(path.is_file() for path in folder.glob(name))]
    if missing:
        damage = f"{missing[0].replace('*', '')} is missing"
    else:
        state: TrainerState = read_json(folder / "trainer_state.json", TrainerState)
        if state["global_step"] == step_of(folder):
            return
        damage = f"trainer_state.json is of step {state['global_step']}"
    raise FasttuneError(f"{folder.name} is damaged: {damage}", str(folder), hint)


def rewind(run: Run, step: int) -> None:
    """Drop later steps, which the run will take again, and the temporary files of a killed
    process."""
    metrics = run.folder / "metrics.jsonl"
    lines, incomplete = read_metrics(metrics)
    if incomplete:
        log.warning(
            "warning: the last line of %s is incomplete, as after SIGKILL: dropped", metrics
        )
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
    write_text(metrics, "".join(kept))
    for checkpoint in checkpoints_of(run):
        if step_of(checkpoint) > step:
            shutil.rmtree(checkpoint)
    for folder in (run.folder, run.checkpoints):
        for path in folder.glob(".*"):
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
