"""Creating, finding, listing, comparing and removing runs."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fasttune.config import RunConfig, dump_config, flatten
from fasttune.data.rows import Rows
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.files import (
    LEFTOVER,
    SEAL,
    locked,
    open_to_all,
    require_no_links,
    state_dir,
    sync,
    unlisted,
    write_json,
    write_text,
)
from fasttune.records import FORMAT, read_json
from fasttune.runs.folder import FILES, FOLDERS, HELD_OUT, TRAINING, Run, now, step_of
from fasttune.runs.resume import checkpoints_of, usable

log = logging.getLogger(__name__)

RUNS = Path("runs")
REMEMBERED = 1000
"""Number of this user's recent runs to remember, in runs.json in the state folder."""


def create_run(
    config: RunConfig,
    model: str,
    facts: Mapping[str, Any],
    held_out: Rows | None = None,
    train: Rows | None = None,
) -> Run:
    """Create a run folder, named after template, model and time: all of it at once, or nothing.

    Args:
        facts: of the manifest, without format, config, status and start.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    named = re.sub(r"[^\w.-]+", "-", f"{facts['template']['name']}-{Path(model).name}")[:80]
    parent = Path(config.output)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{named}.", suffix=".tmp", dir=parent))
        try:
            write_text(aside / "config.yaml", dump_config(config))
            begun = {"format": FORMAT, "status": "running", "started": now()}
            write_json(aside / "manifest.json", {**begun, "config": config.as_dict(), **facts})
            for name, rows in ((TRAINING, train), (HELD_OUT, held_out)):
                if rows:
                    with (aside / name).open("w", encoding="utf-8") as file:
                        for at, row in enumerate(rows):
                            kept = [rows.number(at), row.language, row.as_json()]
                            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
                    sync(aside / name)
            open_to_all(aside)
            sync(aside)
            folder, attempt = parent / f"{named}-{stamp}", 1
            while True:
                try:
                    aside.rename(folder)
                    break
                except OSError:
                    if not folder.exists():
                        raise
                attempt += 1  # another process was quicker
                folder = parent / f"{named}-{stamp}-{attempt}"
            sync(parent)
            _remember(folder)
            return Run(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise FasttuneError(
            "cannot make the run folder",
            f"{parent}: {error.strerror or error}",
            "choose another with --output",
        ) from error


def find_run(name: str = "last", parent: str | Path | None = None) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest: without `parent`,
    the newest run of this user, wherever it is.

    Raises:
        FasttuneError: there is no such run.
    """
    below = Path(parent or RUNS)
    for folder in (Path(name), below / name):
        if os.path.lexists(folder / "manifest.json"):
            return Run(folder)
    checkpoint = _checkpoint(name)
    if checkpoint is None:
        require_other(Path(name), "a run")
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
    if checkpoint is not None:
        hint = f"this is a checkpoint; give its run: {checkpoint.folder}"
    elif _with_known(runs):
        hint = did_you_mean(name, ["last", *(run.name for run in runs)])
    raise FasttuneError(f"there is no run '{name}'", str(below), hint)


def find_trained(name: str) -> Run:
    """What answers or is exported under a name: a run, see `find_run`, or the folder of a
    checkpoint. A run that did not finish stands for its newest checkpoint."""
    run = _checkpoint(name)
    if run is None:
        return usable(find_run(name))
    if not run.adapter.is_dir():
        names = [path.name for path in checkpoints_of(run)]
        hint = did_you_mean(Path(name).name, names)
        raise FasttuneError(f"there is no {run.label}", str(run.adapter), hint)
    return usable(run)


def _checkpoint(name: str) -> Run | None:
    """The checkpoint that a path like RUN/checkpoints/checkpoint-2 names; its run exists."""
    for folder in (Path(name).absolute(), (RUNS / name).absolute()):
        run = folder.parent.parent
        inside = folder.parent.name == "checkpoints" and step_of(folder) >= 0
        if inside and (run / "manifest.json").is_file():
            return Run(run, folder.name)
    return None


def require_other(place: Path, wanted: str) -> None:
    """Refuse what is often given in place of `wanted`, "a run" or "a base model": say what it is,
    and what to give instead."""
    if not place.exists() or place == Path():
        return
    kind, hint, runs = "", "", [place]
    if (place / "adapter_config.json").is_file():
        kind = "an adapter"
        hint = "merge it with PEFT's merge_and_unload, and use the saved model as a base"
        runs = [place.parent, place.parent.parent]  # of a checkpoint, too
        with suppress(FasttuneError):
            settings = read_json(place / "adapter_config.json", dict[str, Any])
            hint += f"; or use its base, {settings['base_model_name_or_path']}"
    elif place.suffix == ".gguf" or any(place.glob("*.gguf")):
        kind = "a GGUF file" if place.is_file() else "a folder of GGUF files"
        hint = "give the model that it was made from: a folder with config.json, or a Hub name"
    if run := next((run for run in runs if (run / "manifest.json").is_file()), None):
        kind = f"{kind} of a run" if kind else "a run"
        hint = f"run `fasttune export {run}`, then give {run}/exports/merged"
        hint = f"give the run, {run}" if wanted == "a run" else hint
    if kind:
        raise FasttuneError(f"this is {kind}, not {wanted}", str(place), hint)


def _with_known(runs: Sequence[Run]) -> list[Run]:
    """The runs, and those of this user that are elsewhere; oldest first."""
    here = {run.folder.resolve() for run in runs}
    elsewhere = [Run(folder) for folder in known_runs() if folder not in here]
    others = [run for run in elsewhere if (run.folder / "manifest.json").is_file()]
    return sorted([*runs, *others], key=_started)


def known_runs() -> list[Path]:
    """The folders of this user's runs, newest last. Some may be gone."""
    try:
        return [Path(line) for line in read_json(state_dir() / "runs.json", list[str])]
    except FasttuneError:
        return []


def _remember(folder: Path) -> None:
    """Note where a run is, as the newest."""
    file = state_dir() / "runs.json"
    try:
        with locked(file):
            others = [path for path in known_runs() if path != folder.resolve()]
            write_json(file, [*map(str, others), str(folder.resolve())][-REMEMBERED:])
    except OSError as error:
        log.warning("warning: cannot note this run in %s: %s", file, reason(error))


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
    # A hidden folder is being created or removed.
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
        settings |= {f"model.{name}": value for name, value in run.used.items()}
        versions = {f"version of {name}": n for name, n in manifest["versions"].items()}
        resolved = {
            "format": manifest["template"]["identity"][:12],
            "rows": manifest["data"]["train_sha256"][:12],
            "held-out rows": manifest["data"]["heldout_sha256"][:12],
            "device": manifest["device"],
        }
        facts.append(settings | resolved | versions)
    return differing(facts)


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each of several settings, for the keys in which they differ."""
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: [each.get(key) for each in settings] for key in keys}
    return {key: each for key, each in values.items() if any(v != each[0] for v in each)}


def remove_runs(runs: Sequence[Run]) -> None:
    """Remove run folders. Each is renamed first, so that none is ever there in half.

    Raises:
        FasttuneError: see `require_removable`; or one cannot be removed, and those before it are
            gone.
    """
    require_removable(runs)
    for run in runs:
        try:
            aside = Path(tempfile.mkdtemp(".old", f".{run.name}.", run.folder.parent))
            run.folder.rename(aside / run.name)
            shutil.rmtree(aside)
        except OSError as error:
            hint = "check who may write there, then run this command again"
            raise FasttuneError(
                f"cannot remove run '{run.name}'", f"{run.folder}: {reason(error)}", hint
            ) from error


def require_removable(runs: Sequence[Run]) -> None:
    """Refuse to remove a folder that is not a run, that holds what fasttune did not write, or that
    is being trained."""
    for run in runs:
        folder = run.folder
        run.manifest  # noqa: B018  damaged, or of something else: an error
        if folder.is_symlink() or folder.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise FasttuneError(
                f"'{folder}' is a link or contains the current folder",
                str(folder.absolute()),
                "change to another folder, and give the run's own folder",
            )
        require_no_links(folder, f"run '{run.name}'")
        if foreign := [*_foreign(folder)]:
            what = f"run '{run.name}' contains files that fasttune did not write"
            raise FasttuneError(
                f"{what}, so it is not removed",
                "\n".join(map(str, foreign[:10])),
                "move these files elsewhere, then remove the run",
            )
        with run.locked():
            pass


def _foreign(folder: Path) -> Iterator[Path]:
    """What fasttune did not write in a run folder, by the names that it gives and by its seals."""
    for path in sorted(folder.iterdir()):
        ours = path.name in (FOLDERS if path.is_dir() else FILES)
        if not (ours or LEFTOVER.fullmatch(path.name)):
            yield path
    checkpoints, exports = ((folder / name).glob("*") for name in ("checkpoints", "exports"))
    for path in sorted([folder / "adapter", *checkpoints, *exports]):
        if (path / SEAL).is_file():
            yield from unlisted(path)
            continue
        ours = path.name in ("adapter", "README.md") or step_of(path) >= 0  # TRL writes a README
        if not (LEFTOVER.fullmatch(path.name) or (ours and path.parent.name != "exports")):
            yield path
