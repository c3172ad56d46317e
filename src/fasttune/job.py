"""What a run will do, worked out without loading a model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.config import RunConfig
from fasttune.data.load import load, shipped
from fasttune.data.rows import ChosenRows
from fasttune.data.split import divide
from fasttune.encode import BATCH, Encoded, Overlong, batches, encode_many, eos_id, fit
from fasttune.encoded import EncodedRows, cache_key, cached, store
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.models.tokenizer import resolve_model
from fasttune.plugins import Plugins
from fasttune.template import Row, Template

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Prepared:
    """Checked rows and the template they are for.

    Attributes:
        model: the name or folder that will be loaded.
        source: where the rows came from, for messages.
        skipped: number of bad rows left out.
    """

    template: Template
    model: str
    source: str
    train: Sequence[Row]
    eval: Sequence[Row]
    skipped: int


def prepare(config: RunConfig, plugins: Plugins) -> Prepared:
    """Find the template, read and check the rows, and divide them.

    Without `data.train` these are the shipped rows, held-out part included. With it, `data.eval`
    is the held-out part, or `data.eval_fraction` of the rows are, chosen by a hash of the row.

    Raises:
        FasttuneError: for whatever is wrong with template, model name or data.
    """
    template = plugins.template(config.template)
    _check_trackers(config.train.report_to)
    data = config.data
    if data.train is None:
        train_source, eval_source = str(shipped("train")), str(shipped("heldout"))
    else:
        train_source, eval_source = data.train, data.eval or ""
    loaded = load(train_source, template, data.columns, limit=data.limit)
    loaded.require_clean(data.skip_bad_rows)
    skipped = loaded.bad_rows
    if eval_source:
        held_out = load(eval_source, template, data.columns)
        held_out.require_clean(data.skip_bad_rows)
        skipped += held_out.bad_rows
        train_at: Sequence[int] = range(len(loaded.rows))
        eval_at: Sequence[int] = range(len(held_out.rows))
    else:
        held_out = loaded
        train_at, eval_at = divide(loaded.rows, data.eval_fraction, data.split_seed)
    if not train_at:
        raise FasttuneError("no row is left to train on", train_source, "lower data.eval_fraction")
    return Prepared(
        template=template,
        model=resolve_model(config.model.name),
        source="shipped rows" if data.train is None else train_source,
        train=ChosenRows(loaded.rows, train_at, with_system({}, config.system)),
        eval=ChosenRows(held_out.rows, eval_at, with_system({}, config.system)),
        skipped=skipped,
    )


def _check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(name, [*TRACKERS])
            raise FasttuneError(f"no tracker is called '{name}'", "train.report_to", hint)
        if importlib.util.find_spec(name) is None:
            raise FasttuneError(
                f"the tracker '{name}' is not installed",
                "train.report_to",
                f"pip install '{name}', or leave it out",
            )


def with_system(row: Mapping[str, str], system: str | None) -> Row:
    """The row with the run's own system text, where there is one."""
    return {**row, "system": system} if system else row


def encode_rows(
    rows: Sequence[Row],
    template: Template,
    tokenizer: Any,
    config: RunConfig,
    what: str,
    say: Callable[[str], None],
) -> EncodedRows:
    """Encode rows under the policy for overlong ones, or take them from the cache, and say how many
    it concerned.

    Raises:
        FasttuneError: a row's own text holds the EOS token, and `data.skip_bad_rows` is off; or a
            row is too long under the policy "error", or all are.
    """
    eos_id(tokenizer)
    eos = tokenizer.eos_token
    usable, ending = array("q"), array("q")
    rendered = hashlib.sha256()
    for at, row in enumerate(rows):
        if any(eos in text for text in row.values()):
            ending.append(at)
            continue
        usable.append(at)
        segments = [[s.name, s.text, s.train] for s in template.segments(row)]
        rendered.update(json.dumps(segments).encode() + b"\n")
    if ending and not config.data.skip_bad_rows:
        raise FasttuneError(
            f"{len(ending)} {what} rows hold the text {eos}, which would end them early",
            f"the first: {rows[ending[0]].get('instruction', '')[:80]!r}",
            "remove it, or leave these rows out with data.skip_bad_rows=true",
        )
    if ending:
        say(f"left out {len(ending)} {what} rows that hold the text {eos}")
    limit, overlong = config.model.max_length, config.data.overlong
    key = cache_key(tokenizer, rendered.hexdigest(), limit, overlong)
    encoded = cached(key)
    if encoded:
        say(f"{len(encoded):,} {what} rows from the cache")
    if encoded is None:
        counts = Counter(dropped=0, truncated=0)
        chosen = (rows[at] for at in usable)
        kept = _fitting(encode_many(template, chosen, tokenizer), limit, overlong, counts)
        encoded = store(key, kept, counts)
    for done, number in encoded.counts.items():
        if number:
            say(f"{done} {number} of {len(usable)} {what} rows: over {limit} tokens")
    if usable and not encoded:
        raise FasttuneError(
            f"no {what} row has {limit} tokens or fewer",
            "model.max_length",
            "raise it, or set data.overlong=truncate",
        )
    return encoded


def _fitting(
    rows: Iterable[Encoded], limit: int, overlong: Overlong, counts: Counter[str]
) -> Iterator[Encoded]:
    """The rows as the policy leaves them; what it did is counted."""
    first = 0
    for batch in batches(rows, BATCH):
        fitted = fit(batch, limit, overlong, first)
        counts.update(dropped=len(fitted.dropped), truncated=len(fitted.truncated))
        yield from (row for _, row in fitted.rows)
        first += len(batch)


def describe_row(row: Encoded, tokenizer: Any) -> list[dict[str, Any]]:
    """The spans of an encoded row as text and ids, for people and scripts."""
    return [
        {
            "section": span.name,
            "train": span.train,
            "ids": row.input_ids[span.start : span.end],
            "text": tokenizer.decode(
                row.input_ids[span.start : span.end], clean_up_tokenization_spaces=False
            ),
        }
        for span in row.spans
    ]
