"""What a comparison will train and measure, worked out without loading a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fasttune.config import RunConfig
from fasttune.data import data_hash, spread
from fasttune.encode import encode
from fasttune.errors import FasttuneError
from fasttune.models.tokenizer import load_tokenizer
from fasttune.plan import Prepared, prepare, steps
from fasttune.plugins import Plugins
from fasttune.runs import Run
from fasttune.template import Row

Budget = Literal["steps", "tokens"]


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
        config: of its runs, but for the seed.
        prepared: its rows: those of all other formats, in the same order.
        runs: seed -> the finished run, or None where it has to be trained.
    """

    label: str
    config: RunConfig
    prepared: Prepared
    runs: Mapping[int, Run | None]


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        folder: where it is kept; named after everything that decides the result, so that the same
            command finds its own folder again.
        places: which of the held-out rows are answered.
        about: what is compared, for people.
        notes: what a reader has to know.
    """

    folder: Path
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
) -> Plan:
    """Plan to train every template with every seed, on the rows that all of them can use.

    Under the budget "steps" every format takes the steps of the config, and so sees the same rows
    in the same order. Under "tokens" the longest format does; the others go on until they have
    seen as many tokens.

    Raises:
        FasttuneError: for whatever is wrong with templates, settings or data.
    """
    _require_different("--templates", templates)
    _require_different("--seeds", seeds)
    if config.train.early_stopping is not None:
        raise FasttuneError(
            "every format gets the same budget, so none may stop early",
            "train.early_stopping",
            "leave it out",
        )
    configs = [
        replace(config, template=name, samples=replace(config.samples, count=0))
        for name in templates
    ]
    prepared = [prepare(each, plugins) for each in configs]
    tokenizer = load_tokenizer(prepared[0].model)
    lengths = [
        {_key(row): len(encode(each.template, row, tokenizer)) for row in (*each.train, *each.eval)}
        for each in prepared
    ]
    train, held_out = (
        _shared(rows, lengths, config)
        for rows in ([each.train for each in prepared], [each.eval for each in prepared])
    )
    for what, rows in (("to train on", train), ("held out", held_out)):
        if not rows:
            raise FasttuneError(
                f"no row {what} can be used in all of the formats",
                prepared[0].source,
                "look at each with: fasttune data FILE --template NAME; data.eval_fraction sets "
                "how many are held out",
            )
    means = [sum(found[_key(row)] for row in train) / len(train) for found in lengths]
    counts = [
        round(steps(len(train), config) * (max(means) / mean if budget == "tokens" else 1))
        for mean in means
    ]
    formats = [
        Format(
            each.template,
            replace(each, train=replace(each.train, max_steps=count)),
            replace(ready, train=train, eval=held_out),
            dict.fromkeys(seeds, None),
        )
        for each, ready, count in zip(configs, prepared, counts, strict=True)
    ]
    step = config.train.batch_size * config.train.gradient_accumulation
    left_out = max(len(found) for found in lengths) - len({_key(r) for r in (*train, *held_out)})
    return _plan(
        folder,
        formats,
        measuring,
        {
            "model": prepared[0].model,
            "rows": _rows(formats[0]),
            "budget": "; ".join(
                f"{name}: {count} steps of {step} rows, about {count * step * mean:,.0f} tokens"
                for name, count, mean in zip(templates, counts, means, strict=True)
            ),
            "seeds": ", ".join(map(str, seeds)),
        },
        [f"{left_out} rows cannot be used in every format and were left out."] if left_out else [],
        plugins,
    )


def plan_runs(
    runs: Sequence[Run], measuring: Measuring, plugins: Plugins, folder: Path | None = None
) -> Plan:
    """Plan to measure finished runs. Those that differ in nothing but the seed are one format.

    Raises:
        FasttuneError: a run is not done, its rows or its template changed, or the rows of two runs
            differ.
    """
    _require_different("RUN", [str(run.folder.resolve()) for run in runs])
    groups: dict[str, list[Run]] = {}
    for run in runs:
        run.check_adapter()
        run.check_template(plugins.identity(run.config.template))
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    templates = [group[0].config.template for group in groups.values()]
    formats: list[Format] = []
    rows: tuple[list[Row], list[Row]] | None = None
    for group in groups.values():
        config = group[0].config
        ready = prepare(config, plugins)
        for run in group:
            run.check_data(ready.train, ready.eval)
        # A system text of the run's own is part of its format, not of the rows.
        bare = prepare(replace(config, system=None), plugins) if config.system else ready
        rows = rows or (bare.train, bare.eval)
        _require_same_rows(rows, (bare.train, bare.eval), runs[0], group[0])
        by_seed = {run.config.seed: run for run in group}
        if len(by_seed) < len(group):
            raise FasttuneError(
                "two of the runs differ in nothing, not even the seed",
                "\n".join(str(run.folder) for run in group),
                "leave one out",
            )
        alone = templates.count(config.template) == 1
        formats.append(Format(config.template if alone else group[0].name, config, ready, by_seed))
    if not formats[0].prepared.eval:
        raise FasttuneError(
            "the runs hold no rows out", str(runs[0].folder), "train with data.eval_fraction"
        )
    about = {
        "model": ", ".join(dict.fromkeys(each.prepared.model for each in formats)),
        "rows": _rows(formats[0]),
        "runs": "; ".join(
            f"{each.label}: {', '.join(run.name for run in each.runs.values() if run)}"
            for each in formats
        ),
    }
    return _plan(folder, formats, measuring, about, _differing(formats), plugins)


def _plan(
    folder: Path | None,
    formats: Sequence[Format],
    measuring: Measuring,
    about: Mapping[str, str],
    notes: list[str],
    plugins: Plugins,
) -> Plan:
    if len(formats) < 2:
        raise FasttuneError(
            "there is nothing to compare with",
            formats[0].label,
            "give two formats or more: --templates A,B, or RUN RUN",
        )
    held_out = formats[0].prepared.eval
    places = spread(range(len(held_out)), measuring.rows or len(held_out))
    chosen = dict(about) | {
        "answers": f"{len(places)} held-out rows, greedy, at most {measuring.max_new_tokens} tokens"
    }
    if all(len(each.runs) == 1 for each in formats):
        notes = [
            *notes,
            "One seed: the intervals tell what other rows would change, not what another seed "
            "would. Give --seeds 1,2,3 for both.",
        ]
    deciding = [
        measuring,
        [
            [
                each.label,
                replace(each.config, output="").as_dict(),
                {seed: run and str(run.folder.resolve()) for seed, run in each.runs.items()},
                plugins.identity(each.config.template).rendering,
                each.prepared.model,
                data_hash(each.prepared.train),
                data_hash(each.prepared.eval),
            ]
            for each in formats
        ],
    ]
    text = json.dumps(deciding, sort_keys=True, default=asdict)
    name = "-".join(
        [*(each.label for each in formats), hashlib.sha256(text.encode()).hexdigest()[:8]]
    )
    return Plan(folder or Path("comparisons") / name, formats, places, measuring, chosen, notes)


def _shared(
    rows: Sequence[Sequence[Row]], lengths: Sequence[Mapping[str, int]], config: RunConfig
) -> list[Row]:
    """The first format's rows that every format has, and of those the ones short enough in all."""
    common = set.intersection(*({_key(row) for row in of_format} for of_format in rows))
    if config.data.overlong == "drop":
        limit = config.model.max_length
        common = {key for key in common if all(found[key] <= limit for found in lengths)}
    return [row for row in rows[0] if _key(row) in common]


def _key(row: Row) -> str:
    return json.dumps(dict(row), sort_keys=True)


def _settings(run: Run) -> dict[str, Any]:
    """Everything that makes two runs differ, but for the seed."""
    return {
        **replace(run.config, seed=0, output="", samples=type(run.config.samples)()).as_dict(),
        **{key: run.manifest[key] for key in ("model", "quantization", "dtype")},
        "rendering": run.manifest["template"]["rendering"],
    }


def _differing(formats: Sequence[Format]) -> list[str]:
    """A note for each setting, other than the template, in which the formats' runs differ."""
    flat = [dict(_flatten(replace(each.config, seed=0, output="").as_dict())) for each in formats]
    return [
        f"The runs differ in {key}: "
        + "; ".join(f"{each.label} {found[key]}" for each, found in zip(formats, flat, strict=True))
        + "."
        for key in flat[0]
        if key != "template" and not key.startswith("samples.")
        if len({str(found[key]) for found in flat}) > 1
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inner = isinstance(value, dict) and key != "columns"
        found += _flatten(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return found


def _require_different(what: str, names: Sequence[Any]) -> None:
    repeated = [name for at, name in enumerate(names) if name in names[:at]]
    if repeated or not names:
        raise FasttuneError(
            f"'{repeated[0]}' is given twice" if repeated else "nothing is given",
            what,
            "name each once",
        )


def _require_same_rows(
    ours: tuple[list[Row], list[Row]], theirs: tuple[list[Row], list[Row]], first: Run, other: Run
) -> None:
    for what, left, right in zip(("training", "held-out"), ours, theirs, strict=True):
        if data_hash(left) != data_hash(right):
            raise FasttuneError(
                f"the {what} rows differ, so the runs cannot be compared",
                f"{first.folder}: {len(left)} rows\n{other.folder}: {len(right)} rows",
                "train both on the same rows: fasttune compare --templates A,B",
            )


def _rows(of: Format) -> str:
    ready = of.prepared
    return f"{ready.source}: {len(ready.train)} to train on, {len(ready.eval)} held out"
