"""Train and measure the arms of a comparison, so that an interrupted comparison resumes.

The folder of a comparison:
plan.json        what is compared, and a hash of all that decides the result
runs/            one run folder for each trained format and seed
answers/         one file for each arm: its answers on the held-out rows, with likelihoods
comparison.json  the figures, differences and verdict
report.html      the same for people, with every answer
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from fasttune.comparison.page import report_html
from fasttune.comparison.plan import Format, Plan, slug
from fasttune.comparison.result import REPORT, Arm, Comparison, measure_arms, split
from fasttune.config import ModelConfig, RunConfig, in_full
from fasttune.errors import FasttuneError
from fasttune.files import write_json, write_text
from fasttune.generation.generator import Generator
from fasttune.generation.likelihood import answer_and_measure
from fasttune.job import require_group_columns
from fasttune.plugins.metric import Answer, as_dict
from fasttune.processes import require_one
from fasttune.records import read_json
from fasttune.runs import Run, list_runs
from fasttune.runs.folder import step_of
from fasttune.terminal import muted
from fasttune.training.train import train

log = logging.getLogger(__name__)

TALKATIVE = ("fasttune.encoding", "fasttune.planning", "fasttune.training.train")
"""Loggers that are muted during a training, up to its steps."""


def run_comparison(
    plan: Plan, by: Sequence[str] = (), folder: str | Path | None = None
) -> Comparison:
    """Train and measure whatever the folder does not hold yet, and write the result; see `compare`.

    Args:
        folder: in place of the plan's.
    """
    require_one("a comparison")
    if folder is not None:
        plan = replace(plan, folder=Path(folder))
    require_group_columns(by, plan.rows, "--by")
    _claim(plan)
    log.info("comparison: %s", plan.folder)
    work = _Work(plan)
    bases = work.bases()
    arms = [*work.tuned(), *bases]
    templates = [each.job.template for each in plan.formats]
    metrics = plan.formats[0].job.plugins.metrics_of(*templates)
    comparison = measure_arms(plan.about, arms, metrics, plan.notes, plan.folder)
    comparison = replace(comparison, groups={name: split(comparison, name) for name in by})
    write_json(plan.folder / "comparison.json", comparison.as_dict())
    write_text(plan.folder / REPORT, report_html(comparison))
    return comparison


def _claim(plan: Plan) -> None:
    """Refuse a folder of another comparison: answers in the folder are taken as they are."""
    file = plan.folder / "plan.json"
    ours = False
    with suppress(FasttuneError):
        ours = read_json(file, dict[str, Any]).get("fingerprint") == plan.fingerprint
    if not ours and plan.folder.exists() and any(plan.folder.iterdir()):
        raise FasttuneError(
            "the folder holds another comparison, or something else",
            str(plan.folder),
            "choose another with --output, or leave it out",
        )
    write_json(file, {"fingerprint": plan.fingerprint, **plan.about})


class _Work:
    """The arms of a plan, trained and measured one after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        own = [each for each in plan.formats if each.base == each.label]
        self.untuned = own if plan.measuring.include_base else []
        self.total = len(self.untuned) + sum(len(each.runs) for each in plan.formats)
        self.begun = 0

    def bases(self) -> list[Arm]:
        """Measure the untuned model under every format."""
        arms = []
        for each in self.untuned:
            label = f"{each.label}, untuned"
            run = next((run for run in each.runs.values() if run), None)
            model = run.model_config if run else each.job.config.model  # what the run loaded
            answers = self.measured(each, label, model, None)
            arms.append(Arm(label, each.label, None, answers))
        return arms

    def tuned(self) -> list[Arm]:
        """Measure every format seed by seed, so that what an hour has done can be read."""
        formats = self.plan.formats
        seeds = dict.fromkeys(seed for each in formats for seed in each.runs)
        arms = [self.arm(each, seed) for seed in seeds for each in formats if seed in each.runs]
        order = [each.label for each in formats]
        return sorted(arms, key=lambda arm: order.index(arm.label))

    def arm(self, each: Format, seed: int) -> Arm:
        """Measure one format with one seed, trained if it has to be."""
        run = each.runs[seed] or self.trained(each, seed)
        answers = self.measured(each, f"{each.label}, seed {seed}", run.model_config, run)
        manifest = run.manifest
        facts = {
            "run": run.label,
            "steps": step_of(run.adapter) if run.checkpoint else manifest["steps"],
            "tokens per second": manifest.get("tokens_per_second", ""),
        }
        return Arm(each.label, each.base, seed, answers, run.metrics(), facts)

    def trained(self, each: Format, seed: int) -> Run:
        """Return the finished run of a format and seed, resumed or trained if need be."""
        folder = self.plan.folder / "runs"
        config = replace(each.job.config, seed=seed, output=str(folder))
        runs = [run for run in list_runs(folder) if _is_of(run, config)]
        for run in runs:
            if run.manifest["status"] == "done":
                return run
        log.info("[%d/%d] training %s, seed %d", self.begun + 1, self.total, each.label, seed)
        with muted(*TALKATIVE):
            run = train(replace(each.job, config=config), resumed=runs[0] if runs else None)
        gc.collect()  # the model and its trainer refer to each other
        if run.manifest["status"] != "done":
            raise KeyboardInterrupt  # during the training, which has saved a checkpoint
        return run

    def measured(
        self, each: Format, name: str, model: ModelConfig, run: Run | None
    ) -> list[Answer]:
        """Return an arm's answers, from its file if they are there and still true."""
        self.begun += 1
        file = self.plan.folder / "answers" / f"{slug(name)}.json"
        template, measuring, rows = each.job.template, self.plan.measuring, self.plan.rows
        if file.is_file():
            try:
                saved = json.loads(file.read_text(encoding="utf-8"))
                answers = [
                    msgspec.convert({**line, "row": row, "targets": template.targets}, Answer)
                    for row, line in zip(rows, saved["answers"], strict=True)
                ]
                parsed_alike = all(template.parsed(a.text) == a.sections for a in answers)
                if saved["run"] == (run and run.name) and parsed_alike:
                    return answers
            except (OSError, ValueError, LookupError, TypeError):
                log.warning("warning: %s is damaged; its rows are answered again", file)
        log.info("[%d/%d] answering %d held-out rows: %s", self.begun, self.total, len(rows), name)
        answers = answer_and_measure(
            Generator.load(model, template, run.adapter if run else None),
            rows,
            measuring.max_new_tokens,
            measuring.batch_size,
            lambda done: log.info("  %d/%d", done, len(rows)),
        )
        gc.collect()
        write_json(file, {"run": run and run.name, "answers": [*map(as_dict, answers)]})
        return answers


def _is_of(run: Run, config: RunConfig) -> bool:
    """Whether a run has these settings; the comparison's folder may have moved."""
    try:
        return in_full(replace(run.config, output=config.output)) == in_full(config)
    except FasttuneError as error:
        log.warning("warning: skipping %s: %s (%s)", run.name, error.message, error.where)
        return False
