"""The run folder: everything about one training run, and reading it back.

config.yaml      the resolved configuration
manifest.json    the format, data hashes, versions, device, timings, outcome
metrics.jsonl    one JSON object per logged step, evaluation included
loss.png         the losses
samples.json     answers on held-out rows before and after training; samples.md shows them to people
answers.png      how many of them are exact, by the columns in samples.by
heldout.jsonl    the held-out rows; a run that holds none out has no such file
adapter/         the adapter, its tokenizer and template.json (the format)
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
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError, did_you_mean, reason
from fasttune.files import (
    SEAL,
    check_seal,
    locked,
    open_to_all,
    state_dir,
    sync,
    write_json,
    write_text,
)
from fasttune.formats.row import Row
from fasttune.formats.template import Template, format_differences, from_declaration
from fasttune.logs import muted
from fasttune.notebook import picture
from fasttune.plugins.registry import Plugins
from fasttune.records import (
    FORMAT,
    Manifest,
    TemplateFacts,
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

RUNS = Path("runs")
HELD_OUT = "heldout.jsonl"
KNOWN = 1000
"""So many of a person's runs are remembered, wherever they are."""


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
        return build_config(self.manifest["config"], str(self.folder / "manifest.json"))

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

    def go_on(self, config: RunConfig, facts: Mapping[str, Any], held_out: Rows) -> None:
        """Take down the settings and the facts of a resumed run."""
        write_text(self.folder / "config.yaml", dump_config(config))
        if facts["data"]["heldout_sha256"] != self.manifest["data"]["heldout_sha256"]:
            self.keep_held_out(held_out)
        begun = {"format": FORMAT, "status": "running", "config": config.as_dict()}
        self.update({**begun, **facts})
        _remember(self)

    def keep_held_out(self, rows: Rows) -> None:
        """Keep the rows that the run holds out, so that nothing needs its source again."""
        lines = (
            json.dumps([rows.number(at), row.language, row.as_json()], ensure_ascii=False)
            for at, row in enumerate(rows)
        )
        if rows:
            write_text(self.folder / HELD_OUT, "".join(f"{line}\n" for line in lines))

    def held_out(self) -> Rows:
        """The rows that the run holds out; none if there are none.

        Raises:
            FasttuneError: the file is missing or damaged.
        """
        file, rows = self.folder / HELD_OUT, StoredRows()
        facts = self.manifest["data"]
        if facts["heldout_sha256"] == data_hash([]):
            return rows
        try:
            with file.open(encoding="utf-8") as lines:
                for number, language, row in map(json.loads, lines):
                    rows.append(Row.from_json(row, "" + language), number)  # only text adds up
            damaged = data_hash(rows) != facts["heldout_sha256"]
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            damaged = True
        if damaged:
            raise FasttuneError(
                "the run's held-out rows are missing or damaged", str(file), "restore the file"
            )
        return rows

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
        found = [path for path in self._checkpoints() if os.path.lexists(path / SEAL)]
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

    def kept_template(
        self, plugins: Plugins, force: bool = False
    ) -> tuple[Template, TemplateFacts]:
        """The run's format as it was declared, without the run's own system text. It needs no
        plugin, unless its text is computed. If a loaded plugin declares something else under the
        same name, the difference is logged.

        Args:
            force: use the plugin's in that case.

        Raises:
            FasttuneError: the text is computed, and the plugin is not loaded or, without `force`,
                has changed.
        """
        facts = self.manifest["template"]
        name, declared = facts["name"], facts["declaration"]
        loaded = plugins.templates.get(name, (None, None))[0]
        if declared is None:
            return self._computed(plugins, loaded, force)
        own = from_declaration(declared)
        if loaded is None or loaded.identity == own.identity:
            return own, facts
        which = "the loaded one (--force)" if force else "the run's (--force uses the loaded one)"
        log.warning(
            "note: template '%s' is not what run '%s' was trained with; using %s\n  %s",
            name, self.name, which, "\n  ".join(format_differences(own, loaded)),
        )  # fmt: skip
        return (loaded, plugins.facts(name)) if force else (own, facts)

    def _computed(
        self, plugins: Plugins, loaded: Template | None, force: bool
    ) -> tuple[Template, TemplateFacts]:
        facts = self.manifest["template"]
        name, path = facts["name"], facts["path"]
        if loaded is None:
            package = f"{facts['distribution']}=={facts['version']}"
            raise FasttuneError(
                f"the format '{name}' of run '{self.name}' computes its text, so it needs its "
                "plugin",
                f"it was in {path}",
                f"pip install {package}"
                if facts["distribution"]
                else f"add --plugin {path}, or wherever the file is now",
            )
        if loaded.identity != facts["identity"] and not force:
            raise FasttuneError(
                f"the code of template '{name}' has changed since '{self.name}' was trained",
                f"trained with {facts['identity']} ({path})\nnow loaded   {loaded.identity} "
                f"({plugins.templates[name][1].path})",
                "restore the plugin, or use --force to continue with it as it is",
            )
        return loaded, plugins.facts(name)

    def template(self, plugins: Plugins, force: bool = False) -> Template:
        """The run's format with the run's own system text; see `kept_template`."""
        return self.kept_template(plugins, force)[0].with_system(self.manifest["system"])

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
    def side_by_side(self) -> int:
        """How many packs of a step its training computes at the same time."""
        return int(self.manifest.get("choices", {}).get("side_by_side", 1))

    @property
    def model_config(self) -> ModelConfig:
        """The model settings with "auto" replaced by what the run really used."""
        return replace(self.config.model, **self.used)

    def check_resumable(self, force: bool = False) -> RunConfig:
        """Refuse to resume a run that is done, or whose config.yaml was edited.

        Args:
            force: go on with the settings as they are now.

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


def create_run(
    config: RunConfig, model: str, facts: Mapping[str, Any], held_out: Rows | None = None
) -> Run:
    """A new run folder named after template, model and time, with its settings, its manifest and
    its held-out rows: all of it is there at once, or nothing.

    Args:
        facts: the manifest's, as `Begun`, but for format, config, status and start.

    Raises:
        FasttuneError: the folder cannot be made.
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
            if held_out is not None:
                Run(aside).keep_held_out(held_out)
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
                _remember(Run(folder))
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


def _remember(run: Run) -> None:
    """Note for later commands where a run is."""
    try:
        with locked(_index()):
            known = [line for line in _known() if line != str(run.folder.resolve())]
            write_json(_index(), [*known, str(run.folder.resolve())][-KNOWN:])
    except OSError as error:
        log.warning("warning: %s will not know this run as its own: %s", _index(), reason(error))


def _forget(run: Run) -> None:
    with suppress(OSError), locked(_index()):
        write_json(_index(), [line for line in _known() if line != str(run.folder.resolve())])


def _index() -> Path:
    return state_dir() / "runs.json"


def _known() -> list[str]:
    """The folders of this person's runs, the newest last."""
    try:
        found: list[str] = read_json(_index(), list[str])
    except FasttuneError:
        return []
    return found


def find_run(name: str = "last", parent: str | Path | None = None) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest.

    Args:
        parent: by default runs/; "last" is then the newest run wherever this person wrote it.

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
            log.warning("warning: %s is passed over: %s (%s)", run.name, error.message, error.where)
        else:
            if run not in runs:
                log.info("the last run is %s", run.folder)
            return run
    hint = "there is no run here yet: give a run's folder, or a model's, one with a config.json"
    if runs:
        hint = did_you_mean(name, [run.name for run in runs])
    raise FasttuneError(f"there is no run '{name}'", str(below), hint)


def _with_known(runs: Sequence[Run]) -> list[Run]:
    """The runs, and those of this person that are elsewhere; oldest first."""
    here = {run.folder.resolve() for run in runs}
    known = [Path(line) for line in _known() if Path(line) not in here]
    elsewhere = [Run(folder) for folder in known if (folder / "manifest.json").is_file()]
    return sorted([*runs, *elsewhere], key=_started)


def is_run(name: str, parent: Path = RUNS) -> bool:
    """Whether a name stands for a run; otherwise it is a base model, by folder or as
    owner/model."""
    if (Path(name) / "manifest.json").is_file() or (parent / name / "manifest.json").is_file():
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
    runs = [run for run in runs if not run.name.startswith(".")]  # about to be made, or removed
    return sorted(runs, key=_started)


def _started(run: Run) -> tuple[str, str]:
    try:
        return run.manifest["started"], run.name
    except FasttuneError:
        return "", run.name


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings, and what became of them, in which runs differ: dotted key -> a value for each.

    Raises:
        FasttuneError: a manifest is damaged.
    """
    facts = []
    for run in runs:
        manifest, settings = run.manifest, flatten(run.config.as_dict())
        del settings["output"]
        facts.append(
            settings
            | {
                "model.name": manifest["model"],
                "model.quantization": manifest["quantization"],
                "model.precision": PRECISIONS[manifest["dtype"]],
                "format": manifest["template"]["identity"][:12],
                "rows": manifest["data"]["train_sha256"][:12],
                "held-out rows": manifest["data"]["eval_sha256"][:12],
                "device": manifest["device"],
            }
            | {f"version of {name}": number for name, number in manifest["versions"].items()}
        )
    keys = dict.fromkeys(key for each in facts for key in each)
    values = {key: [each.get(key) for each in facts] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def remove_runs(runs: Sequence[Run]) -> None:
    """Remove run folders, each wholly: it loses its name before the first file is gone.

    Raises:
        FasttuneError: one is being trained, or cannot be removed; those before it are gone.
    """
    for run in runs:
        with run.locked():
            pass
    for run in runs:
        aside = run.folder.with_name(f".{run.name}.old")
        try:
            run.folder.rename(aside)
        except OSError as error:
            raise FasttuneError(
                f"run '{run.name}' cannot be removed",
                f"{run.folder}: {reason(error)}",
                "nothing of it is gone; see who may write there",
            ) from error
        _forget(run)
        try:
            shutil.rmtree(aside)
        except OSError as error:
            raise FasttuneError(
                f"run '{run.name}' is no longer there, but not all of its files are gone",
                f"{aside}: {reason(error)}",
                f"remove {aside} by hand",
            ) from error


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint that is not whole, or from which a run would not go on as it stopped.

    Raises:
        FasttuneError: a file is missing, damaged or not the one that was written.
    """
    hint = "restore it, or delete it: --resume takes the one before"
    what = f"{folder.name} is damaged"
    if not check_seal(folder, folder.name, hint):
        raise FasttuneError(f"{what}: {SEAL} is missing", str(folder), hint)
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
