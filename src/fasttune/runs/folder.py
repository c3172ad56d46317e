"""The run folder: everything about one training run, and reading it back.

config.yaml      the resolved configuration
manifest.json    the format, data hashes, versions, device, timings, outcome
metrics.jsonl    one JSON object per logged step, evaluation included
loss.png         the losses
samples.json     answers on held-out rows before and after training; samples.md shows them to people
answers.png      how many of them are exact, by the columns in samples.by
training.jsonl   the rows that it trains on
heldout.jsonl    the held-out rows, if there are any
adapter/         the adapter, its tokenizer and template.json (the format)
checkpoints/     what a resumed run starts from
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fasttune.config import PRECISIONS, ModelConfig, RunConfig, build_config, dump_config
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError
from fasttune.files import SEAL, check_seal, only_one, sha256, write_json, write_text
from fasttune.formats.row import Row
from fasttune.formats.template import Template, format_differences, from_declaration
from fasttune.pages import picture
from fasttune.plugins.registry import Plugins
from fasttune.records import FORMAT, Manifest, TemplateFacts, read_manifest, read_metrics

log = logging.getLogger(__name__)

HELD_OUT, TRAINING = "heldout.jsonl", "training.jsonl"
FILES = (
    *("config.yaml", "manifest.json", "metrics.jsonl", "loss.png", "samples.json"),
    *("samples.md", "answers.png", TRAINING, HELD_OUT, ".lock"),
)
FOLDERS = ("adapter", "checkpoints", "exports", "tensorboard")
"""With FILES all that fasttune writes into a run folder."""
LOSS = "eval_loss"
"""The held-out loss in metrics.jsonl; `eval_loss_SECTION` is a section's."""


class Change(NamedTuple):
    """A figure before and after training, and whether "higher" or "lower" is better; "" if neither
    is."""

    name: str
    before: str
    after: str
    better: str


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder.

    Attributes:
        checkpoint: the name of the checkpoint whose adapter counts, in place of the run's own.
    """

    folder: Path
    checkpoint: str | None = None

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
    def label(self) -> str:
        """The name for people, with the checkpoint."""
        return f"{self.checkpoint} of {self.name}" if self.checkpoint else self.name

    @property
    def adapter(self) -> Path:
        return self.checkpoints / self.checkpoint if self.checkpoint else self.folder / "adapter"

    @property
    def adapter_sha256(self) -> str | None:
        """The digest of the adapter's seal."""
        own = self.manifest.get("adapter_sha256")
        return sha256(self.adapter / SEAL) if self.checkpoint else own

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder / "manifest.json")

    @property
    def config(self) -> RunConfig:
        """The settings the run was trained with, whatever became of config.yaml since."""
        return build_config(self.manifest["config"], str(self.folder / "manifest.json"))

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge values into the manifest."""
        write_json(self.folder / "manifest.json", {**self.manifest, **values})

    def stop(self, status: Literal["interrupted", "failed", "nothing learned"]) -> None:
        """Note that training ended early: on a full disk, in the space that the manifest has."""
        try:
            self.update({"status": status})
        except OSError:
            text = json.dumps({**self.manifest, "status": status}, ensure_ascii=False)
            with (self.folder / "manifest.json").open("r+b") as file:
                file.truncate(file.write(text.encode()))

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, in order of steps, without an incomplete last line."""
        return read_metrics(self.folder / "metrics.jsonl")[0]

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def restart(self, config: RunConfig, facts: Mapping[str, Any], step: int) -> None:
        """Note the settings and facts of a run resumed after a step; what it knows of its rows
        stays."""
        begun = {"format": FORMAT, "status": "running", "config": config.as_dict()}
        if config.train != self.config.train:
            begun["continued"] = [*self.manifest.get("continued", []), step]
        write_text(self.folder / "config.yaml", dump_config(config))
        self.update({**facts, **begun, "data": self.manifest["data"]})

    def training_rows(self) -> Rows:
        return self._stored("training", TRAINING, self.manifest["data"]["train_sha256"])

    def held_out(self) -> Rows:
        return self._stored("held-out", HELD_OUT, self.manifest["data"]["heldout_sha256"])

    def _stored(self, what: str, name: str, digest: str) -> Rows:
        """Rows of the run; a missing or damaged file is an error."""
        file, rows = self.folder / name, StoredRows()
        if digest == data_hash([]):
            return rows
        try:
            if not file.is_file():  # opening a pipe would wait for ever
                raise FileNotFoundError
            with file.open(encoding="utf-8") as lines:
                for number, language, row in map(json.loads, lines):
                    rows.append(Row.from_json(row, "" + language), number)  # only text adds up
            damaged = data_hash(rows) != digest
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
            damaged = True
        if damaged:
            raise FasttuneError(
                f"the run's {what} rows are missing or damaged", str(file), "restore the file"
            )
        return rows

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training this run; refuse if one does."""
        file = self.folder / ".lock"
        busy = FasttuneError(
            f"run '{self.name}' is being trained by another process",
            str(self.folder),
            f"wait for it, or end it; if there is none, delete {file}",
        )
        with only_one(file, busy):
            yield

    def kept_template(
        self, plugins: Plugins, force: bool = False
    ) -> tuple[Template, TemplateFacts]:
        """The run's format as it was declared, without the run's own system text. It needs no
        plugin, unless its text is computed.

        Args:
            force: use the format of a loaded plugin if it differs.

        Raises:
            FasttuneError: the text is computed, and the plugin is not loaded or, without `force`,
                has changed.
        """
        facts = self.manifest["template"]
        name, path, package = facts["name"], facts["path"], facts["distribution"]
        loaded = plugins.templates.get(name, (None, None))[0]
        if facts["declaration"] is None:
            if loaded is None:
                raise FasttuneError(
                    f"the format '{name}' of run '{self.name}' computes its text, so it needs its "
                    "plugin",
                    f"it was in {path}",
                    f"pip install {package}=={facts['version']}"
                    if package
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
        own = from_declaration(facts["declaration"])
        if loaded is None or loaded.identity == own.identity:
            return own, facts
        which = "the loaded one (--force)" if force else "the run's (--force uses the loaded one)"
        log.warning(
            "note: template '%s' is not what run '%s' was trained with; using %s\n  %s",
            name, self.name, which, "\n  ".join(format_differences(own, loaded)),
        )  # fmt: skip
        return (loaded, plugins.facts(name)) if force else (own, facts)

    def template(self, plugins: Plugins, force: bool = False) -> Template:
        """The run's format with the run's own system text; see `kept_template`."""
        return self.kept_template(plugins, force)[0].with_system(self.manifest["system"])

    def check_adapter(self) -> None:
        """Refuse a run whose adapter is missing or is not what training wrote."""
        if self.checkpoint:
            hint = "restore it, or use another checkpoint"
            if not check_seal(self.adapter, self.checkpoint, hint):
                what = f"{self.checkpoint} is incomplete: it has no {SEAL}"
                raise FasttuneError(what, str(self.adapter), hint)
            return
        if not (self.adapter / "adapter_config.json").is_file():
            raise FasttuneError(
                f"run '{self.name}' has no adapter; its status is {self.manifest['status']}",
                str(self.folder),
                self.how_to_finish(),
            )
        check_seal(
            self.adapter,
            "the adapter",
            f"restore it; or delete {self.adapter}, and `fasttune run --resume {self.folder}` "
            "creates it again from the last checkpoint",
            self.manifest.get("adapter_sha256"),
        )

    def how_to_finish(self) -> str:
        """What to do about a run that has no adapter, or is not done."""
        return {
            "done": "train a new one: it was finished, and its adapter is gone",
            "nothing learned": "train a new one with a higher train.learning_rate",
        }.get(self.manifest["status"], f"finish it: fasttune run --resume {self.folder}")

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


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name; -1 if it has none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if re.fullmatch("[0-9]{1,18}", number) else -1


def changes(metrics: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> list[Change]:
    """The held-out losses, in nats per token, and the scores of the answers."""
    evaluated = [line for line in metrics if "eval_loss" in line]
    first, last = (evaluated[0], evaluated[-1]) if evaluated else ({}, {})
    found = []
    for key, before, after in _pairs(first, last, digits=4):
        if key.startswith(LOSS):
            section = key.removeprefix(LOSS).replace("_", ", ", 1)
            found.append(Change(f"held-out loss{section}", before, after, "lower"))
    scores = manifest.get("scores", {})
    where = " (on training rows)" if manifest.get("scored") == "training" else ""
    for name, before, after in _pairs(scores.get("before", {}), scores.get("after", {})):
        better = scores.get("better", {}).get(name, "")
        found.append(Change(f"{name}{where}", before, after, better))
    return found


def _pairs(
    before: Mapping[str, float], after: Mapping[str, float], digits: int = 2
) -> Iterator[tuple[str, str, str]]:
    """Yield (key, value before, value after); "-" for a value that is missing or NaN."""
    for key in {**before, **after}:
        values = (side.get(key, math.nan) for side in (before, after))
        old, new = ("-" if math.isnan(value) else f"{value:.{digits}f}" for value in values)
        yield key, old, new


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
