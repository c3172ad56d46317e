"""The rows of a run: those to train on, and those that are held out."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from itertools import islice

from fasttune.config import AUTO, DataConfig, RunConfig, SourceConfig
from fasttune.data.load import Loaded, counted, load_rows, shipped
from fasttune.data.mix import mix, without_repeats
from fasttune.data.rows import ChosenRows, Rows
from fasttune.data.sources import LOOKAHEAD, reader
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

    def read(source: SourceConfig, limit: int | None = None) -> Loaded:
        columns, chosen = source.columns or data.columns, source.split or data.split
        seed, take = data.split_seed, data.turns
        loaded = load_rows(source.name, template, columns, chosen, limit, seed=seed, take=take)
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


def report_unread(loaded: Loaded, template: Template) -> None:
    """Log what the template does not read, once for a source; as a warning if the model is likely
    to miss it."""
    missed = [name for name in loaded.unread if name in SEEN or "." in name]
    for names in (missed, [name for name in loaded.unread if name not in missed]):
        if not names:
            continue
        rows = counted({name: loaded.unread[name] for name in names})
        what = f"{loaded.source}: rows with text that {template.name} does not read: {rows}"
        if names is missed:
            log.warning(
                "warning: %s; the model never sees it: move it to a column that %s reads, or "
                "choose a template that reads it (fasttune templates list)",
                what, template.name,
            )  # fmt: skip
        else:
            log.info("%s", what)


def with_template(config: RunConfig) -> RunConfig:
    """The settings with the template that the rows suggest in place of `auto`; the choice is
    logged."""
    if config.template != AUTO:
        return config
    data = config.data
    sources = data.sources or [SourceConfig(data.train or str(shipped("train")))]
    chosen = [
        suggest_template(
            (record for _, record in islice(reader(s.name, s.split or data.split), LOOKAHEAD)),
            s.columns or data.columns,
        )
        for s in sources
    ]
    name, why = max(chosen, key=lambda choice: ("alpaca", "reasoning", "chatml").index(choice[0]))
    log.info("template %s: %s; --template takes another", name, why)
    return replace(config, template=name)
