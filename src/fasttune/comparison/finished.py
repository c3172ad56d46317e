"""Comparing finished runs: which of them are one format, and whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fasttune.comparison.plan import (
    Format,
    Measuring,
    Plan,
    make_plan,
    require_different,
    require_several,
)
from fasttune.config import flatten
from fasttune.data.rows import StoredRows
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.runs.index import differing


def plan_runs(runs: Sequence[Run], measuring: Measuring, plugins: Plugins) -> Plan:
    """Plan to measure finished runs on the rows that they hold out. Runs that differ only in the
    seed are one format."""
    require_different("RUN", [str(run.folder.resolve()) for run in runs])
    groups = _groups(runs)
    firsts = [next(iter(group.values())) for group in groups]
    formats = [
        Format(label, label, _job(first, plugins), group)
        for label, first, group in zip(_labels(firsts), firsts, groups, strict=True)
    ]
    _require_same_rows(firsts)
    if not formats[0].job.eval:
        raise FasttuneError(
            "the runs hold no rows out", str(runs[0].folder), "train with data.eval_fraction"
        )
    require_several(formats)
    about = {
        "model": ", ".join(dict.fromkeys(each.job.model for each in formats)),
        "rows": f"{formats[0].job.source}: {firsts[0].manifest['data']['train_rows']} to train on, "
        f"{len(formats[0].job.eval)} held out",
        "runs": "; ".join(
            f"{each.label}: {', '.join(run.name for run in group.values())}"
            for each, group in zip(formats, groups, strict=True)
        ),
    }
    return make_plan(formats, measuring, about, _differing(formats))


def _groups(runs: Sequence[Run]) -> list[dict[int, Run]]:
    """Return seed -> run for each group of runs that differ only in the seed, all of them done."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.manifest["status"] != "done":
            raise FasttuneError(
                f"run '{run.name}' is not done; its status is {run.manifest['status']}",
                str(run.folder),
                run.how_to_finish(),
            )
        run.check_adapter()
        settings = {
            **replace(run.config, seed=0, output="", samples=type(run.config.samples)()).as_dict(),
            **run.used,
            "format": run.manifest["template"]["identity"],
            "system": run.manifest["system"],
        }
        group = groups.setdefault(json.dumps(settings, sort_keys=True), {})
        if twin := group.get(run.config.seed):
            raise FasttuneError(
                "two of the runs differ in nothing, not even the seed",
                f"{twin.folder}\n{run.folder}",
                "leave one out",
            )
        group[run.config.seed] = run
    return list(groups.values())


def _job(run: Run, plugins: Plugins) -> Job:
    """What a run began with, as far as measuring it takes: its rows are those that it holds out."""
    manifest = run.manifest
    return Job(
        run.config, plugins, run.template(plugins), manifest["template"], manifest["model"],
        manifest["data"]["source"], train=StoredRows(), eval=run.held_out(), skipped=0,
    )  # fmt: skip


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the templates' names if they differ, else the runs' names, else their folders."""
    candidates = (
        [run.manifest["template"]["name"] for run in runs],
        [run.name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next(names for names in candidates if len(set(names)) == len(names))


def _differing(formats: Sequence[Format]) -> list[str]:
    """A note for each setting, other than the template, in which the formats' runs differ."""
    labels = [each.label for each in formats]
    settings = [flatten(replace(each.job.config, seed=0, output="").as_dict()) for each in formats]
    return [
        f"The runs differ in {key}: "
        + "; ".join(f"{label} {value}" for label, value in zip(labels, values, strict=True))
        + "."
        for key, values in differing(settings).items()
        if key != "template" and not key.startswith("samples.")
    ]


def _require_same_rows(runs: Sequence[Run]) -> None:
    """Insist on the same rows in all formats, and on the same ones being short enough: a row that
    is too long in one format alone was trained on in the others."""
    facts: list[Mapping[str, Any]] = [run.manifest["data"] for run in runs]
    first, expected = runs[0].folder, facts[0]
    for run, data in zip(runs, facts, strict=True):
        for what, key, count in (
            ("training rows", "train_sha256", "train_rows"),
            ("held-out rows", "heldout_sha256", "eval_rows"),
            ("rows that are short enough to train on", "trained_sha256", "train_rows"),
        ):
            if data[key] != expected[key]:
                raise FasttuneError(
                    f"the {what} differ, so the runs cannot be compared",
                    f"{first}: {expected[count]} rows\n{run.folder}: {data[count]} rows",
                    "train both on the same rows: fasttune compare --templates A,B",
                )
