"""What a comparison will train and measure, worked out without loading a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fasttune.config import Override, RunConfig, load_config, steps, with_training
from fasttune.data.rows import ChosenRows, Rows
from fasttune.data.split import data_hash, spread
from fasttune.encoding.cache import encode_rows
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.job import Job, prepare
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run

Budget = Literal["steps", "tokens"]
Without = Literal["eos"]


@dataclass(frozen=True)
class Measuring:
    """How the held-out rows are answered.

    Attributes:
        rows: at most this many held-out rows, at equal distances; 0 takes all.
        max_new_tokens: where an answer that does not stop is cut off.
        batch_size: rows answered at a time.
        include_base: whether the untuned model is measured under every format too.
    """

    rows: int = 200
    max_new_tokens: int = 160
    batch_size: int = 32
    include_base: bool = True


@dataclass(frozen=True)
class Format:
    """One side of a comparison.

    Attributes:
        label: what it is called.
        job: of its runs, but for the seed; its rows are those of all other formats, in the same
            order.
        runs: seed -> the finished run, or None where it has to be trained.
        variant_of: the label of the format that this one is trained otherwise of; the untuned model
            is the same under both.
    """

    label: str
    job: Job
    runs: Mapping[int, Run | None]
    variant_of: str | None = None

    @property
    def base(self) -> str:
        """The label of the format under which the untuned model is measured."""
        return self.variant_of or self.label


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        folder: where it is kept; named after everything that decides the result, so that the same
            command finds its own folder again.
        fingerprint: hash of that.
        places: which of the held-out rows are answered.
        about: what is compared, for people.
        notes: what a reader has to know.
    """

    folder: Path
    fingerprint: str
    formats: Sequence[Format]
    places: Sequence[int]
    measuring: Measuring
    about: Mapping[str, str]
    notes: Sequence[str]


def plan_templates(
    config: RunConfig,
    templates: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    measuring: Measuring,
    plugins: Plugins,
    folder: Path | None = None,
    without: Without | None = None,
    sweep: tuple[str, Sequence[Any]] | None = None,
) -> Plan:
    """Plan to train every template with every seed, on the rows that all of them can use.

    Under the budget "steps" every format takes the steps of the config, and so sees the same rows
    in the same order. Under "tokens" the longest format does; the others go on until they have
    seen as many tokens.

    Args:
        without: train every template a second time without this: "eos" takes no loss on EOS.
        sweep: a setting of the training by its dotted key, and its values: each template is trained
            with each of them.

    Raises:
        FasttuneError: for whatever is wrong with templates, settings or data.
    """
    require_different("--templates", templates)
    require_different("--seeds", seeds)
    if config.train.early_stopping is not None:
        raise FasttuneError(
            "every format gets the same budget, so none may stop early",
            "train.early_stopping",
            "leave it out",
        )
    for name in templates:
        plugins.template(name)  # before rows are read
    bare = replace(config, samples=replace(config.samples, count=0, by=()))
    jobs = [prepare(replace(bare, template=name), plugins) for name in templates]
    import_unsloth()  # before transformers' tokenizers

    train = _shared(jobs, [job.train for job in jobs], config, "training")
    held_out = _shared(jobs, [job.eval for job in jobs], config, "held-out")
    _require_rows(jobs[0], train[0], held_out[0])
    means = [sum(side.lengths) / len(side.rows) for side in train]
    formats: list[Format] = []
    budgets: list[str] = []
    for job, left, right, mean in zip(jobs, train, held_out, means, strict=True):
        shared = replace(job, train=left.rows, eval=right.rows)
        share = max(means) / mean if budget == "tokens" else 1.0
        for each in _formats(shared, share, seeds, sweep):
            formats += [each, *([_without_eos(each)] if without == "eos" else [])]
            budgets.append(_in_words(each, mean))
    about = {
        "model": jobs[0].model,
        "rows": f"{jobs[0].source}: {len(train[0].rows)} to train on, "
        f"{len(held_out[0].rows)} held out",
        "budget": "; ".join(budgets),
        "seeds": ", ".join(map(str, seeds)),
    }
    require_several([each.label for each in formats])
    return make_plan(folder, formats, measuring, about, _left_out(jobs, [train[0], held_out[0]]))


def _formats(
    job: Job, share: float, seeds: Sequence[int], sweep: tuple[str, Sequence[Any]] | None
) -> Iterator[Format]:
    """A template's formats, one for each value of a setting.

    Args:
        share: how often a training takes the steps of its config.
    """
    first = None
    for label, own in _swept(job.template.name, job.config, sweep):
        count = round(steps(len(job.train), own) * share)
        config = with_training(own, max_steps=count)
        yield Format(label, replace(job, config=config), dict.fromkeys(seeds, None), first)
        first = first or label


def _in_words(of: Format, mean: float) -> str:
    """The budget of a format, whose rows have `mean` tokens."""
    chosen = of.job.config.train
    count, step = chosen.max_steps or 0, chosen.batch_size * chosen.gradient_accumulation
    return f"{of.label}: {count} steps of {step} rows, about {count * step * mean:,.0f} tokens"


def _left_out(jobs: Sequence[Job], kept: Sequence[_Side]) -> list[str]:
    """The note on the rows that only some of the formats can use, where there are any."""
    loaded = {_key(row) for job in jobs for row in (*job.train, *job.eval)}
    number = len(loaded - {_key(row) for side in kept for row in side.rows})
    return [f"{number} rows cannot be used in every format and were left out."] if number else []


SWEPT = ("train.", "lora.")
"""Beginnings of the settings that can be swept: all others would change the rows or the model."""


def _swept(
    name: str, config: RunConfig, sweep: tuple[str, Sequence[Any]] | None
) -> Iterator[tuple[str, RunConfig]]:
    """(label, config) for each value of a setting; without one, the template's name."""
    if sweep is None:
        yield name, config
        return
    key, values = sweep
    if not key.startswith(SWEPT):
        raise FasttuneError(
            f"'{key}' cannot be swept", f"--sweep {key}", "it takes a setting of train or lora"
        )
    require_different(f"--sweep {key}", values)
    for value in values:
        own = load_config(None, [Override(key, value, f"--sweep {key}={value}")], config)
        yield f"{name}, {key.partition('.')[2]} {value}", own


def _without_eos(of: Format) -> Format:
    job = replace(of.job, config=with_training(of.job.config, learn_eos=False))
    return replace(of, label=f"{of.label} without EOS", job=job, variant_of=of.base)


def _require_rows(job: Job, train: _Side, held_out: _Side) -> None:
    for what, side in (("to train on", train), ("held out", held_out)):
        if not side.rows:
            raise FasttuneError(
                f"no row {what} can be used in all of the formats",
                job.source,
                "look at each with: fasttune data FILE --template NAME; data.eval_fraction sets "
                "how many are held out",
            )


def make_plan(
    folder: Path | None,
    formats: Sequence[Format],
    measuring: Measuring,
    about: Mapping[str, str],
    notes: list[str],
) -> Plan:
    """The plan of formats whose rows are the same."""
    held_out = formats[0].job.eval
    places = spread(range(len(held_out)), measuring.rows or len(held_out))
    chosen = dict(about) | {
        "answers": f"{len(places)} held-out rows, greedy, at most {measuring.max_new_tokens} tokens"
    }
    if any(len(each.runs) == 1 for each in formats):
        both = " Give --seeds 1,2,3 for both." if len(formats) > 1 else ""
        notes = [
            *notes,
            "One seed: the intervals tell what other rows would change, not what another seed "
            f"would.{both}",
        ]
    deciding = [
        measuring,
        [
            [
                each.label,
                replace(each.job.config, output="").as_dict(),
                {seed: run and str(run.folder.resolve()) for seed, run in each.runs.items()},
                each.job.template.identity,
                each.job.model,
                data_hash(each.job.train),
                data_hash(each.job.eval),
            ]
            for each in formats
        ],
    ]
    text = json.dumps(deciding, sort_keys=True, default=asdict)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    name = "-".join([*(slug(each.label) for each in formats), fingerprint[:8]])
    parent = Path("comparisons" if len(formats) > 1 else "evaluations")
    return Plan(folder or parent / name, fingerprint, formats, places, measuring, chosen, notes)


def slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def require_several(labels: Sequence[str]) -> None:
    """Refuse a comparison of one format.

    Raises:
        FasttuneError: it is one.
    """
    if len(labels) < 2:
        raise FasttuneError(
            "there is nothing to compare with",
            labels[0],
            "give two formats or more: --templates A,B, or RUN RUN; for one: fasttune evaluate",
        )


@dataclass(frozen=True)
class _Side:
    """The rows of a format that all formats can use, and the tokens of each."""

    rows: Rows
    lengths: list[int]


def _shared(
    jobs: Sequence[Job], formats: Sequence[Rows], config: RunConfig, what: str
) -> list[_Side]:
    """The rows that training keeps in every format, for each format, in the order of the first."""
    kept: list[dict[str, tuple[int, int]]] = []  # row -> its place and its number of tokens
    for job, rows in zip(jobs, formats, strict=True):
        tokenizer = load_tokenizer(job.model, job.template.end)
        found = encode_rows(job.template, rows, tokenizer, config, what)
        pairs = zip(found.places, found.lengths, strict=True)
        kept.append({_key(rows[at]): (at, length) for at, length in pairs})
    keys = [key for row in formats[0] if all((key := _key(row)) in found for found in kept)]
    return [
        _Side(ChosenRows(rows, [found[key][0] for key in keys]), [found[key][1] for key in keys])
        for rows, found in zip(formats, kept, strict=True)
    ]


def _key(row: Row) -> str:
    return json.dumps(row.as_json(), sort_keys=True)


def require_different(what: str, names: Sequence[Any]) -> None:
    """Refuse a name that is given twice, or none at all.

    Raises:
        FasttuneError: one of these.
    """
    repeated = [name for at, name in enumerate(names) if name in names[:at]]
    if repeated or not names:
        raise FasttuneError(
            f"'{repeated[0]}' is given twice" if repeated else "nothing is given",
            what,
            "name each once",
        )
