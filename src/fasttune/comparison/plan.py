"""What a comparison measures: formats on the same rows, worked out without loading a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from fasttune.config import MANY, Number, flatten
from fasttune.data.rows import Rows, StoredRows
from fasttune.data.split import data_hash, spread
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.job import Job
from fasttune.models.base import require_trained
from fasttune.plugins.registry import Plugins
from fasttune.runs import Run
from fasttune.runs.index import differing
from fasttune.yaml_text import check_fields


@dataclass(frozen=True)
class Measuring:
    """How the held-out rows are answered. The text of a field is the help of its option."""

    rows: Annotated[
        int, Meta(ge=0, le=MANY), "Rows to answer, evenly spaced; of a task the first ones; 0: all."
    ] = 200
    max_new_tokens: Annotated[Number, "End an answer after this many tokens."] = 160
    batch_size: Annotated[Number, "Rows answered at a time."] = 32
    include_base: Annotated[bool, "Measure the untuned model of every format as well."] = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Format:
    """One side of a comparison. All formats have the same rows in the same order."""

    label: str  # its name in tables and in the report
    base: str  # label of the format under which its untuned model is measured, usually its own
    job: Job  # of its runs, except for the seed
    runs: Mapping[int, Run | None]  # seed -> the finished run, or None if it has to be trained


@dataclass(frozen=True)
class Plan:
    """A whole comparison."""

    folder: Path  # named after all that decides the result: the same command finds it again
    fingerprint: str  # hash of that
    formats: Sequence[Format]
    rows: Sequence[Row]  # those of the held-out rows that are answered
    measuring: Measuring
    about: Mapping[str, str]  # what is compared, for the reader
    notes: Sequence[str]  # caveats for the reader


def make_plan(
    formats: Sequence[Format], measuring: Measuring, about: Mapping[str, str], notes: Sequence[str]
) -> Plan:
    """Return the plan for formats that have the same rows."""
    held_out = formats[0].job.eval
    rows = spread(held_out, measuring.rows or len(held_out))
    answers = f"{len(rows)} held-out rows, greedy, at most {measuring.max_new_tokens} tokens"
    if any(len(each.runs) == 1 for each in formats):
        both = " Give --seeds 1,2,3 for both." if len(formats) > 1 else ""
        notes = [
            *notes,
            "One seed: the intervals tell what other rows would change, not what another seed "
            f"would.{both}",
        ]
    decisive = [
        [
            each.label,
            replace(each.job.config, output="").as_dict(),
            {seed: run and str(run.adapter.resolve()) for seed, run in each.runs.items()},
            each.job.template.identity,
            each.job.model,
            data_hash(each.job.train),
            data_hash(each.job.eval),
        ]
        for each in formats
    ]
    text = json.dumps([measuring, decisive], sort_keys=True, default=asdict)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    parent = Path("comparisons" if len(formats) > 1 else "evaluations")
    folder = parent / "-".join([*(slug(each.label) for each in formats), fingerprint[:8]])
    about = {**about, "answers": answers}
    return Plan(folder, fingerprint, formats, rows, measuring, about, notes)


def slug(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def require_several(formats: Sequence[Format]) -> None:
    """Refuse a comparison of one format."""
    if len(formats) < 2:
        raise FasttuneError(
            "there is nothing to compare with",
            formats[0].label,
            "give two formats or more: --templates A,B, or RUN RUN; for one: fasttune evaluate",
        )


def require_different(where: str, names: Sequence[Any]) -> None:
    """Refuse an empty list, or a name that is given twice."""
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated or not names:
        raise FasttuneError(
            f"'{repeated[0]}' is given twice" if repeated else "nothing is given",
            where,
            "name each once",
        )


def plan_runs(runs: Sequence[Run], measuring: Measuring, plugins: Plugins) -> Plan:
    """Plan to measure finished runs on the rows that they hold out. Runs that differ only in the
    seed are one format."""
    require_different("RUN", [str(run.folder.resolve()) for run in runs])
    groups = _groups(runs)
    firsts = [next(iter(group.values())) for group in groups]
    formats = [
        Format(label, label, job_of(run, plugins, run.template(plugins), run.held_out()), group)
        for label, run, group in zip(_labels(firsts), firsts, groups, strict=True)
    ]
    _require_same_rows(firsts)
    if not formats[0].job.eval:
        raise FasttuneError(
            "the runs hold no rows out", str(runs[0].folder), "train with data.eval_fraction"
        )
    require_several(formats)
    for run in runs:
        require_trained(run)
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


def job_of(run: Run, plugins: Plugins, template: Template, held_out: Rows) -> Job:
    """Return what a run began with, without its training rows, which measuring does not need."""
    manifest = run.manifest
    return Job(
        config=run.config,
        plugins=plugins,
        template=template,
        facts=manifest["template"],
        model=manifest["model"],
        source=manifest["data"]["source"],
        train=StoredRows(),
        eval=held_out,
    )


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
    for run, data in zip(runs, facts, strict=True):
        for what, key, count in (
            ("training rows", "train_sha256", "train_rows"),
            ("held-out rows", "heldout_sha256", "eval_rows"),
            ("rows that are short enough to train on", "trained_sha256", "train_rows"),
        ):
            if data[key] != facts[0][key]:
                raise FasttuneError(
                    f"the {what} differ, so the runs cannot be compared",
                    f"{runs[0].folder}: {facts[0][count]} rows\n{run.folder}: {data[count]} rows",
                    "train both on the same rows: fasttune compare --templates A,B",
                )
