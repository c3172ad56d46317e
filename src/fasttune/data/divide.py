"""The rows of a run: those to train on, and those that are held out."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.config import AUTO, DataConfig, RunConfig, SourceConfig
from fasttune.data.load import Loaded, counted, load_rows, shipped
from fasttune.data.mix import mix, without_repeats
from fasttune.data.rows import ChosenRows, Rows
from fasttune.data.sources import SHARD, beginning, columns_of, files_of, held_out_split
from fasttune.data.split import divide
from fasttune.data.suggest import OTHER_NAMES, suggest_template
from fasttune.errors import FasttuneError
from fasttune.formats.template import Template

log = logging.getLogger(__name__)

SEEN = {*OTHER_NAMES, *OTHER_NAMES["input"], *OTHER_NAMES["reasoning"], "system", "history"} | {
    "tools", "functions", "documents", "image", "images", "audio", "audios", "video", "videos",
}  # fmt: skip
"""Columns that a model is usually shown. Others, such as an id, are about the row."""
FEW = 20
"""Below so many held-out rows, figures on them say little."""


@dataclass(frozen=True)
class Divided:
    """The rows of a run, and what they are from: `sources` holds the source of the training rows,
    and that of the held-out rows if it is another."""

    train: Rows
    eval: Rows
    sources: list[Loaded]

    def notes(self, fraction: float) -> list[str]:
        """What a reader of held-out figures has to know; `fraction` is data.eval_fraction."""
        notes, count = [], len(self.eval)
        loaded, *others = self.sources
        trained = {*loaded.digests} if others else set()
        if overlap := sum(digest in trained for other in others for digest in other.digests):
            notes.append(f"{overlap} of {count} held-out rows are training rows as well")
        if count < FEW:
            rows = len(self.train) + count
            wanted = min(0.5, math.ceil(100 * FEW / rows) / 100)
            more = f"data.eval_fraction={wanted:g} holds out about {round(wanted * rows)}"
            advice = more if len(self.sources) == 1 and wanted > fraction else "use more rows"
            few = f"only {count} row{'s are' if count > 1 else ' is'} held out"
            notes.append(f"{few if count else 'no row is held out'}: {advice}")
        return notes


def load_divided(data: DataConfig, template: Template) -> Divided:
    """Read the rows of a run and divide them.

    Without `data.train` these are the shipped rows, held-out part included. With it, `data.eval`
    or `data.eval_split` is the held-out part, or `data.eval_fraction` of the rows are, chosen by a
    hash of the row.

    Rows that cannot be used are left to `Loaded.require_clean`.
    """
    train, held_out, split = data.train, data.eval, data.eval_split or "train"
    if data.sources and train is not None:
        raise FasttuneError(
            "data.train and data.sources are both given", train, "put it among the sources"
        )
    if train is None and not data.sources:
        train, held_out = str(shipped("train")), held_out or str(shipped("heldout"))
    if held_out is None and data.eval_split is not None:
        held_out = train
        if train is None:
            what = "data.eval_split cannot be combined with data.sources"
            raise FasttuneError(what, data.eval_split, "name the held-out rows with data.eval")

    if held_out is None and train is not None:
        held_out, split = _beside(Path(train).expanduser())

    own: dict[str, dict[str, str]] = {}
    if held_out and train is not None and data.columns:
        files = ((train, data.split), (held_out, split))
        needed = [_needed(data.columns, columns_of(*file)) for file in files]
        if {**needed[0], **needed[1]}.keys() == data.columns.keys():
            own = dict(zip((train, held_out), needed, strict=True))

    def read(source: SourceConfig, limit: int | None = None) -> Loaded:
        loaded = load_rows(
            source.name,
            template,
            source.columns or own.get(source.name, data.columns),
            source.split or data.split,
            limit,
            seed=data.split_seed,
            take=data.turns,
        )
        if data.train or data.sources:
            report_unread(loaded, template)
        return loaded

    if train is not None:
        loaded = read(SourceConfig(train), data.limit)
        loaded = without_repeats([loaded])[0] if data.drop_duplicates else loaded
    else:
        several = [read(source, data.limit) for source in data.sources]
        loaded = mix(data.sources, without_repeats(several) if data.drop_duplicates else several)
    if held_out:
        try:
            other = read(SourceConfig(held_out, split))
        except FasttuneError as error:
            if error.message.startswith("no column"):  # a mapping would be the training rows', too
                error.hint = "rename its columns to those of the training rows"
            raise
        return Divided(loaded.rows, other.rows, [loaded, other])
    left, right = divide(loaded.digests, data.eval_fraction)
    return Divided(ChosenRows(loaded.rows, left), ChosenRows(loaded.rows, right), [loaded])


def _beside(train: Path) -> tuple[str | None, str]:
    """The rows to evaluate on that lie with those to train on, and their split: those of the same
    folder are taken. A file beside a file is only named."""
    if train.is_dir():
        if split := held_out_split(train):
            log.info("%s: its split '%s' is held out", train, split)
            return str(train), split
    elif train.is_file():
        if shard := SHARD.search(train.name):
            if int(shard[2]) > 1:
                log.warning(
                    "warning: %s is one of %s files; give the folder to take them all",
                    train, int(shard[2]),
                )  # fmt: skip
        elif train.name.startswith("train") and (split := held_out_split(train.parent)):
            [other, *_] = [*files_of(train.parent, split), train.parent]
            log.info("%s lies beside: data.eval=%s holds its rows out", other.name, other)
    return None, "train"


def _needed(columns: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """The mapping as far as a file needs it: one of our own columns that is there stays, if the
    column that it would be taken from is not."""
    return {o: theirs for o, theirs in columns.items() if theirs in names or o not in names}


def report_unread(loaded: Loaded, template: Template) -> None:
    """Log what the template does not read, once for a source; as a warning if the model is likely
    to miss it."""
    what = f"{loaded.source}: rows with text that {template.name} does not read"
    missed = {name: n for name, n in loaded.unread.items() if name in SEEN or "." in name}
    if missed:
        log.warning(
            "warning: %s: %s; the model never sees it: move it to a column that %s reads, or "
            "choose a template that reads it (fasttune templates list)",
            what, counted(missed), template.name,
        )  # fmt: skip
    if others := {name: n for name, n in loaded.unread.items() if name not in missed}:
        log.info("%s: %s", what, counted(others))


def with_template(config: RunConfig) -> RunConfig:
    """The settings with the template that the rows suggest in place of `auto`; the choice is
    logged."""
    if config.template != AUTO:
        return config
    data = config.data
    sources = data.sources or [SourceConfig(data.train or str(shipped("train")))]
    chosen = [
        suggest_template(
            beginning(each.name, each.split or data.split), each.columns or data.columns
        )
        for each in sources
    ]
    name, why = max(chosen, key=lambda choice: ("alpaca", "reasoning", "chatml").index(choice[0]))
    log.info("template %s: %s; --template takes another", name, why)
    return replace(config, template=name)
