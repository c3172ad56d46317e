"""The run folder: everything about one training run, and reading it back.

config.yaml      the resolved configuration
manifest.json    template identity, data hash, versions, device, timings, outcome
metrics.jsonl    one JSON object per logged step, evaluation included
loss.png         the losses
samples.json     answers on held-out rows before and after training; samples.md shows them to people
answers.png      how many of them are exact, by the columns in samples.by
adapter/         the adapter, its tokenizer and template.json (the template's identity)
checkpoints/     what a resumed run starts from
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any, Literal

import filelock

from fasttune.config import (
    PRECISIONS,
    ModelConfig,
    RunConfig,
    build_config,
    dump_config,
    flatten,
    load_config,
)
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.files import check_seal, open_to_all, sync, write_json, write_text
from fasttune.logs import muted
from fasttune.notebook import picture
from fasttune.plugins.identity import Identity
from fasttune.plugins.template import Row
from fasttune.records import (
    FORMAT,
    Manifest,
    TrainerState,
    read_json,
    read_manifest,
    read_metrics,
)

log = logging.getLogger(__name__)

CHECKPOINT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "trainer_state.json",
)
"""Without any of these a resumed run would have other losses than an unbroken one."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder."""

    folder: Path

    def __repr__(self) -> str:
        try:
            manifest = self.manifest
        except FasttuneError as error:
            return f"<Run {self.folder}: {error.message}>"
        steps = f", {manifest['steps']} steps" if "steps" in manifest else ""
        return f"<Run {self.folder}: {manifest['status']}{steps}>"

    def _repr_html_(self) -> str:
        drawn = self.folder / "loss.png"
        losses = picture(drawn, f"losses of {self.name}") if drawn.is_file() else ""
        return f"<p>{escape(repr(self))}</p>{losses}"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def manifest(self) -> Manifest:
        """What manifest.json holds.

        Raises:
            FasttuneError: it is missing or damaged, or of a later fasttune.
        """
        return read_manifest(self.folder / "manifest.json")

    @property
    def config(self) -> RunConfig:
        """The settings the run was trained with, whatever became of config.yaml since.

        Raises:
            FasttuneError: they are damaged.
        """
        values = self.manifest.get("config")
        if values is None:
            return self.config_file
        return build_config(values, str(self.folder / "manifest.json"))

    @property
    def config_file(self) -> RunConfig:
        """What config.yaml says now.

        Raises:
            FasttuneError: it is missing or damaged.
        """
        return load_config(self.folder / "config.yaml")

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge values into the manifest."""
        write_json(self.folder / "manifest.json", {**self.manifest, **values})

    def stop(self, status: Literal["interrupted", "failed"]) -> None:
        """Note that training ended before its end; on a full disk within the room on it that the
        manifest has already."""
        try:
            self.update({"status": status})
        except OSError:
            text = json.dumps({**self.manifest, "status": status}, ensure_ascii=False)
            with (self.folder / "manifest.json").open("r+b") as file:
                file.truncate(file.write(text.encode()))

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, in order of steps. A last line that was cut off, as by a kill, does not
        count.

        Raises:
            FasttuneError: another line is damaged.
        """
        return read_metrics(self.folder / "metrics.jsonl")[0]

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def go_on(self, config: RunConfig, facts: Mapping[str, Any]) -> None:
        """Take down the settings and the facts of a resumed run."""
        write_text(self.folder / "config.yaml", dump_config(config))
        self.update({"format": FORMAT, "status": "running", "config": config.as_dict(), **facts})

    def go_back(self, step: int) -> None:
        """Drop what there is of the steps that a resumed run will take again, and what a killed
        process left half written."""
        lines, half = read_metrics(self.folder / "metrics.jsonl")
        if half:
            log.warning(
                "warning: the last line of %s was cut off, as by a kill; it is left out",
                self.folder / "metrics.jsonl",
            )
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        write_text(self.folder / "metrics.jsonl", "".join(kept))
        for later in self._checkpoints():
            if step_of(later) > step:
                shutil.rmtree(later)
        for folder in (self.folder, self.checkpoints):
            for left in folder.glob(".*"):
                if re.search(r"\.(tmp|old)\b", left.name):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def answers_before(self, rows: int) -> list[tuple[str, str, int]] | None:
        """Text, reason of the stop and tokens of the answers given before training; None where they
        are not there, or not whole."""
        try:
            saved: list[tuple[str, str, int]] = read_json(
                self.folder / "before.json", list[tuple[str, str, int]]
            )
        except FasttuneError:
            return None
        return saved if len(saved) == rows else None

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, or None where there is none at all. Newer ones are
        named in a warning.

        Raises:
            FasttuneError: there are checkpoints, and all are damaged.
        """
        found = self._checkpoints()
        problems = []
        for folder in found:
            try:
                check_checkpoint(folder)
            except FasttuneError as error:
                problems.append(error)
                continue
            for problem in problems:
                log.warning(
                    "warning: %s (%s); going on from %s", problem.message, problem.where,
                    folder.name,
                )  # fmt: skip
            return folder
        if problems:
            raise FasttuneError(
                "no checkpoint of the run is whole",
                "\n".join(f"{each.where}: {each.message}" for each in problems),
                f"restore one; or delete {self.checkpoints}, and --resume begins from the first "
                "step",
            )
        return None

    def _checkpoints(self) -> list[Path]:
        """All of them, whole or not, the newest first."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0]
        return sorted(found, key=step_of, reverse=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training this run.

        Raises:
            FasttuneError: one does.
        """
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise FasttuneError(
                f"run '{self.name}' is being trained by another process",
                str(self.folder),
                f"wait for it, or end it; if there is none, delete {lock.lock_file}",
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()

    def check_template(self, identity: Identity, force: bool = False) -> None:
        """Refuse a template that renders otherwise than the run's.

        Raises:
            FasttuneError: the renderings differ and `force` is off; it shows both hashes.
        """
        trained = self.manifest["template"]
        if trained["rendering"] != identity.rendering and not force:
            raise FasttuneError(
                f"template '{identity.name}' renders otherwise than when '{self.name}' was trained",
                f"trained with {trained['rendering']} ({trained['path']})\n"
                f"now loaded   {identity.rendering} ({identity.path})",
                "restore the template, or use --force to go on all the same",
            )

    def check_adapter(self) -> None:
        """Refuse a run that has no adapter yet, or whose adapter is not what training wrote.

        Raises:
            FasttuneError: one of these.
        """
        if not (self.adapter / "adapter_config.json").is_file():
            raise FasttuneError(
                f"run '{self.name}' has no adapter; its status is {self.manifest['status']}",
                str(self.folder),
                "train it anew: it was finished, and its adapter is gone"
                if self.manifest["status"] == "done"
                else f"finish it: fasttune run --resume {self.folder}",
            )
        check_seal(
            self.adapter,
            "the adapter",
            f"restore it; or delete {self.adapter}, and `fasttune run --resume {self.folder}` "
            "makes it anew from the last checkpoint",
            self.manifest.get("adapter_sha256"),
        )

    @property
    def used(self) -> dict[str, Any]:
        """What the model settings turned out to be."""
        manifest = self.manifest
        return {
            "name": manifest["model"],
            "quantization": manifest["quantization"],
            "precision": PRECISIONS[manifest["dtype"]],
        }

    @property
    def model_config(self) -> ModelConfig:
        """The model settings with "auto" replaced by what the run really used."""
        return replace(self.config.model, **self.used)

    def check_resumable(self, identity: Identity, force: bool = False) -> RunConfig:
        """Refuse to resume a run that is done, whose template changed, or whose config.yaml was
        edited.

        Args:
            force: go on with the template and the settings as they are now.

        Returns:
            the settings to go on with.

        Raises:
            FasttuneError: one of these.
        """
        if self.manifest["status"] == "done" and self.adapter.is_dir():
            raise FasttuneError(
                f"run '{self.name}' is done",
                str(self.folder),
                "start a new run with more train.epochs",
            )
        self.check_template(identity, force)
        with muted(__name__):  # it is said when it is taken
            self.last_checkpoint()
        now = self._edited(force)
        before, after = flatten(self.config.as_dict()), flatten(now.as_dict())
        edited = [key for key in after if before[key] != after[key]]
        if edited and not force:
            raise FasttuneError(
                "config.yaml is not as the run began",
                "\n".join(
                    [str(self.folder / "config.yaml")]
                    + [f"{key}: {before[key]!r} became {after[key]!r}" for key in edited]
                ),
                "put these back, or use --force to go on with the new ones",
            )
        return now

    def _edited(self, force: bool) -> RunConfig:
        """What config.yaml says; where that cannot be read, `force` takes what the run began
        with."""
        try:
            return self.config_file
        except FasttuneError as error:
            if "config" not in self.manifest:
                raise
            if force:
                return self.config
            hint = "restore it, or use --force to go on as the run began"
            raise FasttuneError(error.message, error.where, hint) from error

    def check_data(
        self, train: Sequence[Row], held_out: Sequence[Row], force: bool = False
    ) -> None:
        """Refuse other rows than the run began with.

        Raises:
            FasttuneError: the hash of the rows differs and `force` is off.
        """
        data = self.manifest["data"]
        if force:
            return
        for side, digest, rows in (
            ("train", data["train_sha256"], train),
            ("eval", data["eval_sha256"], held_out),
        ):
            if digest != data_hash(rows):
                raise FasttuneError(
                    "the rows are not those the run began with",
                    f"{data['source']}: {side} rows",
                    "restore the data, or use --force to go on with these",
                )


def create_run(config: RunConfig, model: str, facts: Mapping[str, Any]) -> Run:
    """A new run folder named after template, model and time, with its settings and its manifest:
    all of it is there at once, or nothing.

    Args:
        facts: the manifest's, as `Begun`, but for status and start.

    Raises:
        FasttuneError: the folder cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    named = re.sub(r"[^\w.-]+", "-", f"{config.template}-{Path(model).name}")[:80]
    parent = Path(config.output)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{named}.", suffix=".tmp", dir=parent))
        try:
            write_text(aside / "config.yaml", dump_config(config))
            begun = {"format": FORMAT, "status": "running", "started": now()}
            write_json(aside / "manifest.json", begun | {"config": config.as_dict()} | {**facts})
            open_to_all(aside)
            sync(aside)
            for attempt in range(1, 1000):
                folder = parent / (f"{named}-{stamp}" + (f"-{attempt}" if attempt > 1 else ""))
                try:
                    aside.rename(folder)
                except OSError:
                    if not folder.exists():
                        raise
                    continue  # another process was quicker
                sync(parent)
                return Run(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise FasttuneError(
            "cannot make the run folder",
            f"{parent}: {error.strerror or error}",
            "choose another with --output",
        ) from error
    raise FasttuneError("cannot find a free name for the run", str(parent), "clear the folder")


def find_run(name: str, parent: Path = Path("runs")) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest.

    Raises:
        FasttuneError: there is no such run.
    """
    for folder in (Path(name), parent / name):
        if os.path.lexists(folder / "manifest.json"):
            return Run(folder)
    runs = list_runs(parent)
    for run in reversed(runs) if name == "last" else ():
        try:
            run.manifest  # noqa: B018
        except FasttuneError as error:
            log.warning("warning: %s is passed over: %s (%s)", run.name, error.message, error.where)
        else:
            return run
    hint = "there is no run here yet: give a run's folder, or a model's, one with a config.json"
    if runs:
        hint = did_you_mean(name, [run.name for run in runs])
    raise FasttuneError(f"there is no run '{name}'", str(parent), hint)


def is_run(name: str, parent: Path = Path("runs")) -> bool:
    """Whether a name stands for a run; otherwise it is a base model, by folder or as
    owner/model."""
    if (Path(name) / "manifest.json").is_file() or (parent / name / "manifest.json").is_file():
        return True
    if (Path(name) / "config.json").is_file():
        return False
    return name.count("/") != 1 or Path(name).parent.is_dir()


def list_runs(parent: Path = Path("runs")) -> list[Run]:
    """All runs below a folder, oldest first; before them those whose manifest is damaged."""
    try:
        runs = [Run(file.parent) for file in parent.glob("*/manifest.json")]
    except OSError as error:
        raise FasttuneError(
            "cannot look for runs", f"{parent}: {reason(error)}", "give another folder with -o"
        ) from error
    runs = [run for run in runs if not run.name.startswith(".")]  # about to be made

    def started(run: Run) -> tuple[str, str]:
        try:
            return run.manifest["started"], run.name
        except FasttuneError:
            return "", run.name

    return sorted(runs, key=started)


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint that is not whole, or from which a run would not go on as it stopped.

    Raises:
        FasttuneError: a file is missing, damaged or not the one that was written.
    """
    hint = "restore it, or delete it: --resume takes the one before"
    what = f"{folder.name} is damaged"
    check_seal(folder, folder.name, hint)
    for pattern in CHECKPOINT:
        if not any(path.is_file() for path in folder.glob(pattern)):
            name = pattern.replace("*", "")
            raise FasttuneError(f"{what}: {name} is missing", str(folder), hint)
    file = folder / "trainer_state.json"
    state: TrainerState = read_json(file, TrainerState)
    if state["global_step"] != step_of(folder):
        raise FasttuneError(
            f"{what}: trainer_state.json is of step {state['global_step']}", str(folder), hint
        )


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name; -1 where there is none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if re.fullmatch("[0-9]{1,18}", number) else -1
