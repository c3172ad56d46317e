"""Comparing runs that are there: which belong together, and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fasttune.comparison.plan import (
    Format,
    Measuring,
    Plan,
    make_plan,
    require_different,
    require_several,
    rows_in_words,
)
from fasttune.config import flatten
from fasttune.data.split import data_hash
from fasttune.encoding.cache import encode_rows, without_ending
from fasttune.errors import FasttuneError
from fasttune.job import Job, prepare
from fasttune.models.tokenizer import load_tokenizer
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run


def plan_runs(
    runs: Sequence[Run], measuring: Measuring, plugins: Plugins, folder: Path | None = None
) -> Plan:
    """Plan to measure finished runs. Those that differ in nothing but the seed are one format.

    Raises:
        FasttuneError: a run is not done, its rows or its template changed, or the rows of two runs
            differ.
    """
    require_different("RUN", [str(run.folder.resolve()) for run in runs])
    groups = _groups(runs, plugins)
    labels = _labels([group[0] for group in groups])
    formats = [
        Format(label, _job(group, group[0].with_template(plugins)), _by_seed(group))
        for label, group in zip(labels, groups, strict=True)
    ]
    firsts = [group[0] for group in groups]
    _require_same_rows(formats, firsts)
    _require_same_fit(formats, firsts)
    if not formats[0].job.eval:
        raise FasttuneError(
            "the runs hold no rows out", str(runs[0].folder), "train with data.eval_fraction"
        )
    about = {
        "model": ", ".join(dict.fromkeys(each.job.model for each in formats)),
        "rows": rows_in_words(formats[0]),
        "runs": "; ".join(
            f"{each.label}: {', '.join(run.name for run in each.runs.values() if run)}"
            for each in formats
        ),
    }
    require_several(labels)
    return make_plan(folder, formats, measuring, about, _differing(formats))


def _groups(runs: Sequence[Run], plugins: Plugins) -> list[list[Run]]:
    """The runs by their settings without the seed, all of them done and their templates as they
    were."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.manifest["status"] != "done":
            raise FasttuneError(
                f"run '{run.name}' is not done; its status is {run.manifest['status']}",
                str(run.folder),
                f"finish it: fasttune run --resume {run.folder}",
            )
        run.check_template(run.with_template(plugins).identity(run.config.template))
        run.check_adapter()
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    return list(groups.values())


def _job(group: Sequence[Run], plugins: Plugins) -> Job:
    """What the runs of one format began with."""
    job = prepare(group[0].config, plugins)
    for run in group:
        run.check_data(job.train, job.eval)
    if not job.config.data.skip_bad_rows:
        return job
    return replace(job, eval=without_ending(job.eval, load_tokenizer(job.model), job.config))


def _by_seed(group: Sequence[Run]) -> dict[int, Run | None]:
    by_seed: dict[int, Run | None] = {run.config.seed: run for run in group}
    if len(by_seed) < len(group):
        raise FasttuneError(
            "two of the runs differ in nothing, not even the seed",
            "\n".join(str(run.folder) for run in group),
            "leave one out",
        )
    return by_seed


def _labels(runs: Sequence[Run]) -> list[str]:
    """The templates' names, or where these are not enough the runs', or their folders."""
    candidates = (
        [run.config.template for run in runs],
        [run.name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next(names for names in candidates if len(set(names)) == len(names))


def _settings(run: Run) -> dict[str, Any]:
    """Everything that makes two runs differ, but for the seed."""
    return {
        **replace(run.config, seed=0, output="", samples=type(run.config.samples)()).as_dict(),
        **run.used,
        "rendering": run.manifest["template"]["rendering"],
    }


def _differing(formats: Sequence[Format]) -> list[str]:
    """A note for each setting, other than the template, in which the formats' runs differ."""
    flat = [flatten(replace(each.job.config, seed=0, output="").as_dict()) for each in formats]
    return [
        f"The runs differ in {key}: "
        + "; ".join(f"{each.label} {found[key]}" for each, found in zip(formats, flat, strict=True))
        + "."
        for key in flat[0]
        if key != "template" and not key.startswith("samples.")
        if len({str(found[key]) for found in flat}) > 1
    ]


def _require_same_rows(formats: Sequence[Format], runs: Sequence[Run]) -> None:
    """Insist on the same rows in all formats; a system text of the run's own is part of its format,
    not of the rows."""
    bare = [
        prepare(replace(each.job.config, system=None), each.job.plugins)
        if each.job.config.system
        else each.job
        for each in formats
    ]
    for job, run in zip(bare[1:], runs[1:], strict=True):
        for what, left, right in (
            ("training", bare[0].train, job.train),
            ("held-out", bare[0].eval, job.eval),
        ):
            if data_hash(left) != data_hash(right):
                raise FasttuneError(
                    f"the {what} rows differ, so the runs cannot be compared",
                    f"{runs[0].folder}: {len(left)} rows\n{run.folder}: {len(right)} rows",
                    "train both on the same rows: fasttune compare --templates A,B",
                )


def _require_same_fit(formats: Sequence[Format], runs: Sequence[Run]) -> None:
    """A row that is too long in one format only was trained on in the others."""
    import fasttune.models.unsloth  # noqa: F401  before transformers' tokenizers

    kept = [
        {*encode_rows(job.train, load_tokenizer(job.model), job.config, "training").places}
        for job in (each.job for each in formats)
    ]
    for fits, run in zip(kept[1:], runs[1:], strict=True):
        if fits != kept[0]:
            raise FasttuneError(
                "the rows differ, as not the same ones are short enough",
                f"{runs[0].folder}: trained on {len(kept[0])} rows\n"
                f"{run.folder}: trained on {len(fits)} rows",
                "train both on the same rows: fasttune compare --templates A,B",
            )
