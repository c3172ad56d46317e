"""Finding, listing, comparing and removing runs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttune.config import PRECISIONS, flatten
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.runs.folder import ENTRIES, Run
from fasttune.runs.known import known_runs

log = logging.getLogger(__name__)

RUNS = Path("runs")


def find_run(name: str = "last", parent: str | Path | None = None) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest.

    Args:
        parent: by default runs/; "last" is then the newest run wherever this user wrote it.

    Raises:
        FasttuneError: there is no such run.
    """
    below = Path(parent or RUNS)
    for folder in (Path(name), below / name):
        if os.path.lexists(folder / "manifest.json"):
            return Run(folder)
    runs = list_runs(below)
    for run in reversed(runs if parent else _with_known(runs)) if name == "last" else ():
        try:
            run.manifest  # noqa: B018
        except FasttuneError as error:
            log.warning("warning: skipped %s: %s (%s)", run.name, error.message, error.where)
        else:
            if run not in runs:
                log.info("the last run is %s", run.folder)
            return run
    hint = "there is no run here yet: give a run's folder, or a model's, one with a config.json"
    if runs:
        hint = did_you_mean(name, [run.name for run in runs])
    raise FasttuneError(f"there is no run '{name}'", str(below), hint)


def _with_known(runs: Sequence[Run]) -> list[Run]:
    """The runs, and those of this user that are elsewhere; oldest first."""
    here = {run.folder.resolve() for run in runs}
    elsewhere = [path for path in known_runs() if path not in here]
    others = [Run(folder) for folder in elsewhere if (folder / "manifest.json").is_file()]
    return sorted([*runs, *others], key=_started)


def is_run(name: str) -> bool:
    """Whether a name stands for a run; otherwise it is a base model: a folder, or owner/model."""
    if any((folder / "manifest.json").is_file() for folder in (Path(name), RUNS / name)):
        return True
    if (Path(name) / "config.json").is_file():
        return False
    return name.count("/") != 1 or Path(name).parent.is_dir()


def list_runs(parent: Path = RUNS) -> list[Run]:
    """All runs below a folder, oldest first; before them those whose manifest is damaged."""
    try:
        runs = [Run(file.parent) for file in parent.glob("*/manifest.json")]
    except OSError as error:
        raise FasttuneError(
            "cannot look for runs", f"{parent}: {reason(error)}", "give another folder with -o"
        ) from error
    # A hidden folder is being made or removed.
    return sorted((run for run in runs if not run.name.startswith(".")), key=_started)


def _started(run: Run) -> tuple[str, str]:
    try:
        return run.manifest["started"], run.name
    except FasttuneError:
        return "", run.name


def compare_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings, rows and versions in which runs differ: dotted key -> a value for each run."""
    facts = []
    for run in runs:
        manifest = run.manifest
        settings = {k: v for k, v in flatten(run.config.as_dict()).items() if k != "output"}
        versions = {f"version of {name}": n for name, n in manifest["versions"].items()}
        resolved = {
            "model.name": manifest["model"],
            "model.quantization": manifest["quantization"],
            "model.precision": PRECISIONS[manifest["dtype"]],
            "format": manifest["template"]["identity"][:12],
            "rows": manifest["data"]["train_sha256"][:12],
            "held-out rows": manifest["data"]["heldout_sha256"][:12],
            "device": manifest["device"],
        }
        facts.append(settings | resolved | versions)
    return differing(facts)


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> a value from each of several settings, for the keys in which they differ."""
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: [each.get(key) for each in settings] for key in keys}
    return {key: each for key, each in values.items() if any(v != each[0] for v in each)}


def remove_runs(runs: Sequence[Run]) -> None:
    """Remove run folders. Each is renamed first, so that none is ever there in half.

    Raises:
        FasttuneError: one is not a run, holds something that fasttune did not write, is being
            trained, or cannot be removed. Runs before it are gone only in the last case.
    """
    for run in runs:
        _require_own(run)
        with run.locked():
            pass
    for run in runs:
        aside = run.folder.with_name(f".{run.name}.old")
        try:
            run.folder.rename(aside)
        except OSError as error:
            raise FasttuneError(
                f"cannot remove run '{run.name}'",
                f"{run.folder}: {reason(error)}",
                "nothing of it is gone; check who may write there",
            ) from error
        try:
            shutil.rmtree(aside)
        except OSError as error:
            raise FasttuneError(
                f"run '{run.name}' is removed, but some of its files are left",
                f"{aside}: {reason(error)}",
                f"remove {aside} by hand",
            ) from error


def _require_own(run: Run) -> None:
    """Refuse to remove a folder that is not a run, or that holds files of somebody else."""
    folder = run.folder
    run.manifest  # noqa: B018  damaged, or of something else: an error
    if folder.is_symlink() or folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise FasttuneError(
            f"'{run.name}' is a link or the current folder",
            str(folder),
            "give the run's own folder, from outside of it",
        )
    foreign = [path for path in sorted(folder.iterdir()) if path.name not in ENTRIES]
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    if foreign or links:
        raise FasttuneError(
            f"run '{run.name}' holds what fasttune did not write, so it is not removed",
            "\n".join(map(str, [*foreign, *links][:10])),
            "move these files elsewhere, then remove the run",
        )
