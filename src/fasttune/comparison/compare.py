"""The verbs `compare` and `evaluate`: formats, runs and models measured on the same rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.comparison import Budget, Without
from fasttune.comparison.plan import (
    Format,
    Measuring,
    Plan,
    job_of,
    make_plan,
    plan_runs,
    require_different,
    require_several,
)
from fasttune.config import Override, RunConfig, load_config, with_training
from fasttune.data.rows import ChosenRows, Rows, StoredRows
from fasttune.data.split import digest
from fasttune.encoding.cache import encode_rows
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.job import Job, prepare
from fasttune.models.tokenizer import load_tokenizer, resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.planning.schedule import settle, steps
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.source import find_source
from fasttune.terminal import muted

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison

log = logging.getLogger(__name__)

Sweep = tuple[str, Sequence[Any]]
"""A setting by its dotted key, and its values."""

SWEPT = ("train.", "lora.")
"""Beginnings of the settings that can be swept: all others would change the rows or the model."""


def compare(
    of: Sequence[str | Run],
    config: RunConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    budget: Budget = "steps",
    without: Without | None = None,
    sweep: Sweep | None = None,
    measuring: Measuring = Measuring(),
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
) -> Comparison:
    """Tell which prompt format is better, on the same rows and the same budget.

    What the folder of the comparison holds already is not computed again.

    Args:
        of: templates to train, or finished runs.
        config: of the runs to be trained.
        seeds: to train each template with; by default the config's.
        budget: under "steps" every format takes the steps of the config, and so sees the same rows
            in the same order. Under "tokens" the longest format does; the others continue until
            they have seen as many tokens.
        without: train each template a second time without a loss on "eos".
        sweep: a setting and its values, as ("train.learning_rate", [1e-4, 3e-4]): each template is
            trained with each of them.
        measuring: how the held-out rows are answered.
        by: columns of the rows; figures and differences are taken for each of their values, too.
        output: the folder; by default below comparisons/, named after what is compared.

    Raises:
        FasttuneError: for whatever is wrong with templates, runs, settings or data.
        KeyboardInterrupt: a training was interrupted; the same call resumes it.
    """
    config, plugins = config or RunConfig(), plugins or installed_plugins()
    runs = [each for each in of if isinstance(each, Run)]
    names = [each for each in of if isinstance(each, str)]
    if runs and names:
        raise FasttuneError("templates and runs are mixed", ", ".join(names), "give one kind")
    with muted("fasttune.encoding"):
        if runs:
            plan = plan_runs(runs, measuring, plugins)
        else:
            seeds = [config.seed] if seeds is None else seeds
            plan = plan_templates(config, names, seeds, budget, measuring, plugins, without, sweep)
    return _run(plan, by, output)


def evaluate(
    name: str | Run,
    data: str | Path | None = None,
    *,
    template: str | None = None,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    measuring: Measuring = Measuring(rows=0, max_new_tokens=256, include_base=False),
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
    force: bool = False,
) -> Comparison:
    """Compute every metric, with its interval, on rows that have their reference response.

    What the folder holds already is not computed again.

    Args:
        name: a run, or a base model; see `find_source`.
        data: a file, a folder or a Hub name; by default the rows that the run holds out.
        columns: our column -> theirs.
        settings: KEY=VALUE for reading the rows, such as "data.skip_bad_rows=true".
        measuring: how the rows are answered.
        by: columns of the rows; figures are taken for each of their values, too.
        output: the folder; by default below evaluations/, named after what is measured.
        force: use the loaded template if it differs from the run's.

    Raises:
        FasttuneError: as `find_source`, or there are no rows, or the file cannot be read or holds a
            row that cannot be used.
    """
    source = find_source(name, template, system, plugins or installed_plugins(), force)
    run, chosen = source.run, source.template
    rows = source.read(data, columns, settings, labelled=True)
    about = {"rows": f"{data or 'held-out rows'}: {len(rows)}"}
    notes: list[str] = []
    if run:
        job = job_of(run, source.plugins, chosen, rows)
        about["runs"] = run.label
        trained = {digest(row) for row in run.training_rows()}
        if seen := sum(digest(row) in trained for row in rows):
            notes = [f"The run was trained on {seen} of these {len(rows)} rows."]
            log.warning("warning: %s", notes[0])
    else:
        job = Job(
            config=RunConfig(template=chosen.name, model=source.model),
            plugins=source.plugins,
            template=chosen,
            facts=source.plugins.facts(chosen.name),
            model=resolve_model(source.model.name),
            source=str(data),
            train=StoredRows(),
            eval=rows,
        )
        measuring = replace(measuring, include_base=True)
    runs = {run.config.seed: run} if run else {}
    measured = Format(chosen.name, chosen.name, job, runs)
    plan = make_plan([measured], measuring, {"model": job.model, **about}, notes)
    return _run(plan, by, output)


def _run(plan: Plan, by: Sequence[str], output: str | Path | None) -> Comparison:
    import_unsloth()  # before transformers, TRL and PEFT
    from fasttune.comparison.work import run_comparison

    return run_comparison(plan, by, output)


def plan_templates(
    config: RunConfig,
    templates: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    measuring: Measuring,
    plugins: Plugins,
    without: Without | None = None,
    sweep: Sweep | None = None,
) -> Plan:
    """Plan to train every template with every seed, on the rows that all of them can use."""
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
    longest = max(tokens for _, tokens in train)
    settled = settle(config, jobs[0].model, len(train[0][0])).train
    formats: list[Format] = []
    budgets: list[str] = []
    for job, (rows, tokens), (others, _) in zip(jobs, train, held_out, strict=True):
        own = replace(job.config, train=settled)
        shared = replace(job, config=own, train=rows, eval=others)
        share = longest / tokens if budget == "tokens" else 1.0
        for each in _formats(shared, share, seeds, without, sweep):
            formats.append(each)
            chosen = each.job.config.train
            count, step = chosen.max_steps or 0, chosen.batch_size * chosen.gradient_accumulation
            total = f"about {count * step * tokens:,.0f} tokens"
            budgets.append(f"{each.label}: {count} steps of {step} rows, {total}")
    require_several(formats)
    (train_rows, _), (eval_rows, _) = train[0], held_out[0]
    loaded = {_key(row) for job in jobs for row in (*job.train, *job.eval)}
    unused = len(loaded - {_key(row) for row in (*train_rows, *eval_rows)})
    notes = [f"{unused} rows cannot be used in every format and were left out."] if unused else []
    about = {
        "model": jobs[0].model,
        "rows": f"{jobs[0].source}: {len(train_rows)} to train on, {len(eval_rows)} held out",
        "budget": "; ".join(budgets),
        "seeds": ", ".join(map(str, seeds)),
    }
    return make_plan(formats, measuring, about, notes)


def _formats(
    job: Job, share: float, seeds: Sequence[int], without: Without | None, sweep: Sweep | None
) -> Iterator[Format]:
    """Yield a template's formats.

    Args:
        share: multiplies the steps of the config.
    """
    runs: dict[int, Run | None] = dict.fromkeys(seeds, None)
    configs = _swept(job, *sweep) if sweep else {job.template.name: job.config}
    base = next(iter(configs))
    for label, config in configs.items():
        config = with_training(config, max_steps=round(steps(len(job.train), config) * share))
        yield Format(label, base, replace(job, config=config), runs)
        if without == "eos":
            config = with_training(config, learn_eos=False)
            yield Format(f"{label} without EOS", base, replace(job, config=config), runs)


def _swept(job: Job, key: str, values: Sequence[Any]) -> dict[str, RunConfig]:
    """Return label -> the job's config with a value of the swept setting."""
    if not key.startswith(SWEPT):
        raise FasttuneError(
            f"'{key}' cannot be swept", f"--sweep {key}", "it takes a setting of train or lora"
        )
    configs = [
        load_config(None, [Override(key, value, f"--sweep {key}={value}")], job.config)
        for value in values
    ]
    require_different(f"--sweep {key}", [values[configs.index(config)] for config in configs])
    labels = [f"{job.template.name}, {key.partition('.')[2]} {value}" for value in values]
    return dict(zip(labels, configs, strict=True))


def _shared(
    jobs: Sequence[Job], sides: Sequence[Rows], config: RunConfig, what: str
) -> list[tuple[Rows, float]]:
    """Return the rows that training keeps in every format, for each format, in the order of the
    first, with their mean number of tokens in the format."""
    kept: list[dict[str, tuple[int, int]]] = []  # row -> its place and its number of tokens
    for job, rows in zip(jobs, sides, strict=True):
        tokenizer = load_tokenizer(job.model, job.template.end)
        encoded = encode_rows(job.template, rows, tokenizer, config, what)
        pairs = zip(encoded.places, encoded.lengths, strict=True)
        kept.append({_key(rows[place]): (place, length) for place, length in pairs})
    keys = [key for row in sides[0] if all((key := _key(row)) in each for each in kept)]
    if not keys:
        raise FasttuneError(
            f"no {what} row can be used in all of the formats",
            jobs[0].source,
            "look at each with: fasttune data FILE --template NAME; data.eval_fraction sets how "
            "many are held out",
        )
    shared: list[tuple[Rows, float]] = []
    for rows, each in zip(sides, kept, strict=True):
        places = [each[key][0] for key in keys]
        shared.append((ChosenRows(rows, places), sum(each[key][1] for key in keys) / len(keys)))
    return shared


def _key(row: Row) -> str:
    return json.dumps(row.as_json(), sort_keys=True)
