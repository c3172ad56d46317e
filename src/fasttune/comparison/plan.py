"""What a comparison measures: formats on the same rows, worked out without loading a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fasttune.data.split import data_hash, spread
from fasttune.errors import FasttuneError
from fasttune.job import Job
from fasttune.runs import Run


@dataclass(frozen=True)
class Measuring:
    """How the held-out rows are answered.

    Attributes:
        rows: at most this many held-out rows, evenly spaced; 0 takes all.
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
        label: its name in tables and in the report.
        base: label of the format under which its untuned model is measured, usually its own.
        job: of its runs, except for the seed. All formats have the same rows in the same order.
        runs: seed -> the finished run, or None if it has to be trained.
    """

    label: str
    base: str
    job: Job
    runs: Mapping[int, Run | None]


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        folder: named after everything that decides the result, so that the same command finds its
            own folder again.
        fingerprint: hash of that.
        places: which of the held-out rows are answered.
        about: what is compared, for the reader.
        notes: caveats for the reader.
    """

    folder: Path
    fingerprint: str
    formats: Sequence[Format]
    places: Sequence[int]
    measuring: Measuring
    about: Mapping[str, str]
    notes: Sequence[str]


def make_plan(
    formats: Sequence[Format], measuring: Measuring, about: Mapping[str, str], notes: Sequence[str]
) -> Plan:
    """Return the plan for formats that have the same rows."""
    held_out = formats[0].job.eval
    places = spread(range(len(held_out)), measuring.rows or len(held_out))
    answers = f"{len(places)} held-out rows, greedy, at most {measuring.max_new_tokens} tokens"
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
    parent = Path("comparisons" if len(formats) > 1 else "evaluations")
    return Plan(
        folder=parent / "-".join([*(slug(each.label) for each in formats), fingerprint[:8]]),
        fingerprint=fingerprint,
        formats=formats,
        places=places,
        measuring=measuring,
        about={**about, "answers": answers},
        notes=notes,
    )


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
