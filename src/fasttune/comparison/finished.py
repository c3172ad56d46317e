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
)
from fasttune.config import flatten
from fasttune.data.rows import StoredRows
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run


def plan_runs(
    runs: Sequence[Run], measuring: Measuring, plugins: Plugins, folder: Path | None = None
) -> Plan:
    """Plan to measure finished runs on the rows that they hold out. Those that differ in nothing
    but the seed are one format.

    Raises:
        FasttuneError: a run is not done or holds no rows out, or the rows of two runs differ.
    """
    require_different("RUN", [str(run.folder.resolve()) for run in runs])
    groups = _groups(runs)
    labels = _labels([group[0] for group in groups])
    formats = [
        Format(label, _job(group[0], plugins), _by_seed(group))
        for label, group in zip(labels, groups, strict=True)
    ]
    firsts = [group[0] for group in groups]
    _require_same_rows(firsts)
    if not formats[0].job.eval:
        raise FasttuneError(
            "the runs hold no rows out", str(runs[0].folder), "train with data.eval_fraction"
        )
    about = {
        "model": ", ".join(dict.fromkeys(each.job.model for each in formats)),
        "rows": f"{formats[0].job.source}: {firsts[0].manifest['data']['train_rows']} to train on, "
        f"{len(formats[0].job.eval)} held out",
        "runs": "; ".join(
            f"{each.label}: {', '.join(run.name for run in each.runs.values() if run)}"
            for each in formats
        ),
    }
    require_several(labels)
    return make_plan(folder, formats, measuring, about, _differing(formats))


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by their settings without the seed, all of them done."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.manifest["status"] != "done":
            raise FasttuneError(
                f"run '{run.name}' is not done; its status is {run.manifest['status']}",
                str(run.folder),
                f"finish it: fasttune run --resume {run.folder}",
            )
        run.check_adapter()
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    return list(groups.values())


def _job(run: Run, plugins: Plugins) -> Job:
    """What a run began with, as far as measuring it takes: its rows are those that it holds out."""
    manifest = run.manifest
    return Job(
        run.config, plugins, run.template(plugins), manifest["template"], manifest["model"],
        manifest["data"]["source"], train=StoredRows(), eval=run.held_out(), skipped=0,
    )  # fmt: skip


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
        [run.manifest["template"]["name"] for run in runs],
        [run.name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next(names for names in candidates if len(set(names)) == len(names))


def _settings(run: Run) -> dict[str, Any]:
    """Everything that makes two runs differ, but for the seed."""
    return {
        **replace(run.config, seed=0, output="", samples=type(run.config.samples)()).as_dict(),
        **run.used,
        "format": run.manifest["template"]["identity"],
        "system": run.manifest["system"],
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


def _require_same_rows(runs: Sequence[Run]) -> None:
    """Insist on the same rows in all formats, and on the same ones being short enough: a row that
    is too long in one format alone was trained on in the others."""
    first, *others = [(run, run.manifest["data"]) for run in runs]
    for run, data in others:
        for what, key in (
            ("training rows", "train_sha256"),
            ("held-out rows", "heldout_sha256"),
            ("rows that are short enough to train on", "trained_sha256"),
        ):
            if data[key] != first[1][key]:  # type: ignore[literal-required]
                count = "eval_rows" if key == "heldout_sha256" else "train_rows"
                raise FasttuneError(
                    f"the {what} differ, so the runs cannot be compared",
                    f"{first[0].folder}: {first[1][count]} rows\n"  # type: ignore[literal-required]
                    f"{run.folder}: {data[count]} rows",  # type: ignore[literal-required]
                    "train both on the same rows: fasttune compare --templates A,B",
                )
