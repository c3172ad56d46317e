"""Which prompt format is better, on the same rows and the same budget?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fasttune.comparison.finished import plan_runs
from fasttune.comparison.plan import (
    Format,
    Measuring,
    Plan,
    make_plan,
    require_different,
    require_several,
)
from fasttune.config import Override, RunConfig, load_config, steps, with_training
from fasttune.data.rows import ChosenRows, Rows
from fasttune.encoding.cache import encode_rows
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.job import Job, prepare
from fasttune.logs import muted
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import import_unsloth
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run

if TYPE_CHECKING:
    from fasttune.comparison.result import Comparison

Budget = Literal["steps", "tokens"]
Without = Literal["eos"]
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
    include_base: bool = True,
    rows: int = 200,
    max_new_tokens: int = 160,
    batch_size: int = 32,
    by: Sequence[str] = (),
    output: str | Path | None = None,
    plugins: Plugins | None = None,
) -> Comparison:
    """Which prompt format is better, on the same rows and the same budget?

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
        include_base: measure the untuned model under every format as well.
        rows: held-out rows to answer, at equal distances; 0 takes all.
        max_new_tokens: where an answer that does not stop is cut off.
        by: columns of the rows; figures and differences are taken for each of their values, too.
        output: the folder; by default below comparisons/, named after what is compared.

    Raises:
        FasttuneError: for whatever is wrong with templates, runs, settings or data.
        KeyboardInterrupt: a training was interrupted; the same call resumes it.
    """
    plugins = plugins or installed_plugins()
    measuring = Measuring(rows, max_new_tokens, batch_size, include_base)
    runs = [each for each in of if isinstance(each, Run)]
    names = [each for each in of if isinstance(each, str)]
    if runs and names:
        raise FasttuneError("templates and runs are mixed", ", ".join(names), "give one kind")
    config = config or RunConfig()
    with muted("fasttune.encoding"):
        if runs:
            plan = plan_runs(runs, measuring, plugins)
        else:
            chosen = [config.seed] if seeds is None else seeds
            plan = plan_templates(config, names, chosen, budget, measuring, plugins, without, sweep)
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
    for what, side in (("to train on", train[0]), ("held out", held_out[0])):
        if not side.rows:
            raise FasttuneError(
                f"no row {what} can be used in all of the formats",
                jobs[0].source,
                "look at each with: fasttune data FILE --template NAME; data.eval_fraction sets "
                "how many are held out",
            )
    means = [sum(side.lengths) / len(side.rows) for side in train]
    formats: list[Format] = []
    budgets: list[str] = []
    for job, left, right, mean in zip(jobs, train, held_out, means, strict=True):
        shared = replace(job, train=left.rows, eval=right.rows)
        share = max(means) / mean if budget == "tokens" else 1.0
        for each in _formats(shared, share, seeds, sweep):
            formats += [each, *([_without_eos(each)] if without == "eos" else [])]
            chosen = each.job.config.train
            count, step = chosen.max_steps or 0, chosen.batch_size * chosen.gradient_accumulation
            tokens = f"about {count * step * mean:,.0f} tokens"
            budgets.append(f"{each.label}: {count} steps of {step} rows, {tokens}")
    require_several(formats)
    loaded = {_key(row) for job in jobs for row in (*job.train, *job.eval)}
    kept = {_key(row) for side in (train[0], held_out[0]) for row in side.rows}
    unused = len(loaded - kept)
    notes = [f"{unused} rows cannot be used in every format and were left out."] if unused else []
    about = {
        "model": jobs[0].model,
        "rows": f"{jobs[0].source}: {len(train[0].rows)} to train on, "
        f"{len(held_out[0].rows)} held out",
        "budget": "; ".join(budgets),
        "seeds": ", ".join(map(str, seeds)),
    }
    return make_plan(formats, measuring, about, notes)


def _formats(job: Job, share: float, seeds: Sequence[int], sweep: Sweep | None) -> Iterator[Format]:
    """Yield a template's formats, one for each value of a swept setting.

    Args:
        share: multiplies the steps of the config.
    """
    name, configs = job.template.name, {job.template.name: job.config}
    if sweep is not None:
        key, values = sweep
        if not key.startswith(SWEPT):
            raise FasttuneError(
                f"'{key}' cannot be swept", f"--sweep {key}", "it takes a setting of train or lora"
            )
        require_different(f"--sweep {key}", values)
        configs = {
            f"{name}, {key.partition('.')[2]} {value}": load_config(
                None, [Override(key, value, f"--sweep {key}={value}")], job.config
            )
            for value in values
        }
    base = next(iter(configs))
    for label, config in configs.items():
        config = with_training(config, max_steps=round(steps(len(job.train), config) * share))
        yield Format(label, base, replace(job, config=config), dict.fromkeys(seeds, None))


def _without_eos(of: Format) -> Format:
    job = replace(of.job, config=with_training(of.job.config, learn_eos=False))
    return replace(of, label=f"{of.label} without EOS", job=job)


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
        encoded = encode_rows(job.template, rows, tokenizer, config, what)
        pairs = zip(encoded.places, encoded.lengths, strict=True)
        kept.append({_key(rows[place]): (place, length) for place, length in pairs})
    keys = [key for row in formats[0] if all((key := _key(row)) in each for each in kept)]
    return [
        _Side(ChosenRows(rows, [each[key][0] for key in keys]), [each[key][1] for key in keys])
        for rows, each in zip(formats, kept, strict=True)
    ]


def _key(row: Row) -> str:
    return json.dumps(row.as_json(), sort_keys=True)
