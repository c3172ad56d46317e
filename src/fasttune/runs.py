"""The run folder: everything about one training run, and reading it back.

config.yaml      the resolved configuration
manifest.json    template identity, data hash, versions, device, timings, outcome
metrics.jsonl    one JSON object per logged step, evaluation included
loss.png         the losses
samples.json     answers on held-out rows before and after training; samples.md shows them to people
adapter/         the adapter, its tokenizer and template.json (the template's identity)
checkpoints/     what a resumed run starts from
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from fasttune.config import PRECISIONS, ModelConfig, RunConfig, dump_config, load_config
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.files import write_json, write_text
from fasttune.notebook import picture
from fasttune.plugins.identity import Identity
from fasttune.plugins.template import Row


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder."""

    folder: Path

    def __repr__(self) -> str:
        manifest = self.manifest
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
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> RunConfig:
        return load_config(self.folder / "config.yaml")

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge values into the manifest."""
        file = self.folder / "manifest.json"
        write_json(file, {**(self.manifest if file.is_file() else {}), **values})

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, in order of steps."""
        file = self.folder / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run will take again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.folder / "metrics.jsonl", "".join(kept))

    def last_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None."""
        found = [
            p for p in self.checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").is_file()
        ]
        return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

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
        """Refuse a run that has no adapter yet.

        Raises:
            FasttuneError: the run is not done.
        """
        if not (self.adapter / "adapter_config.json").is_file():
            raise FasttuneError(
                f"run '{self.name}' has no adapter; its status is {self.manifest['status']}",
                str(self.folder),
                f"finish it: fasttune run --resume {self.folder}",
            )

    @property
    def model_config(self) -> ModelConfig:
        """The model settings with "auto" replaced by what the run really used."""
        manifest = self.manifest
        used: dict[str, Any] = {
            "name": manifest["model"],
            "quantization": manifest["quantization"],
            "precision": PRECISIONS[manifest["dtype"]],
        }
        return replace(self.config.model, **used)

    def check_resumable(self, identity: Identity, force: bool = False) -> None:
        """Refuse to resume a run that is done, has no checkpoint, or whose template changed.

        Raises:
            FasttuneError: one of these.
        """
        if self.manifest["status"] == "done":
            raise FasttuneError(
                f"run '{self.name}' is done",
                str(self.folder),
                "start a new run with more train.epochs",
            )
        if self.last_checkpoint() is None:
            raise FasttuneError(
                f"run '{self.name}' stopped before its first checkpoint",
                str(self.checkpoints),
                "start it anew; train.save_steps sets how often it saves",
            )
        self.check_template(identity, force)

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
        for key, rows in (("train_sha256", train), ("eval_sha256", held_out)):
            if data[key] != data_hash(rows):
                raise FasttuneError(
                    "the rows are not those the run began with",
                    f"{data['source']}: {key.removesuffix('_sha256')} rows",
                    "restore the data, or use --force to go on with these",
                )


def create_run(config: RunConfig, model: str) -> Run:
    """A new, empty run folder named after template, model and time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = f"{config.template}-{Path(model).name}-{stamp}"
    parent = Path(config.output)
    for attempt in range(1, 1000):
        folder = parent / (base if attempt == 1 else f"{base}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise FasttuneError(
                "cannot make the run folder", f"{folder}: {error}", "choose another with --output"
            ) from error
        write_text(folder / "config.yaml", dump_config(config))
        return Run(folder)
    raise FasttuneError("cannot find a free name for the run", str(parent), "clear the folder")


def find_run(name: str, parent: Path = Path("runs")) -> Run:
    """A run by its folder, by its name below `parent`, or "last" for the newest.

    Raises:
        FasttuneError: there is no such run.
    """
    for folder in (Path(name), parent / name):
        if (folder / "manifest.json").is_file():
            return Run(folder)
    runs = list_runs(parent)
    if name == "last" and runs:
        return runs[-1]
    raise FasttuneError(
        f"there is no run '{name}'", str(parent), did_you_mean(name, [run.name for run in runs])
    )


def is_run(name: str, parent: Path = Path("runs")) -> bool:
    """Whether a name stands for a run; otherwise it is a base model, by folder or as
    owner/model."""
    if (Path(name) / "manifest.json").is_file() or (parent / name / "manifest.json").is_file():
        return True
    if (Path(name) / "config.json").is_file():
        return False
    return name.count("/") != 1 or Path(name).parent.is_dir()


def list_runs(parent: Path = Path("runs")) -> list[Run]:
    """All runs below a folder, oldest first."""
    runs = [Run(file.parent) for file in parent.glob("*/manifest.json")]
    return sorted(runs, key=lambda run: (run.manifest.get("started", ""), run.name))


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
