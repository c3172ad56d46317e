"""The model card of an export: its origin, its use, and its verification."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.formats.examples import examples
from fasttune.pages import environment
from fasttune.runs.folder import changes, step_of

if TYPE_CHECKING:
    from fasttune.exports.job import RunExport
    from fasttune.exports.verify import Exported
    from fasttune.plugins.exporter import Exporter

LICENCES = {"phi-2": "mit", "smollm2": "apache-2.0"}
"""Part of a base's name -> its licence, for folders without one in a README."""
SEE_BASE = "see the base model"


def model_card(job: RunExport, exporter: Exporter, done: Exported) -> str:
    """README.md of the export, with the front matter that the Hub reads.

    It holds no path of this machine and no row of the run's data.
    """
    run, manifest = job.run, job.run.manifest
    metrics = run.metrics()
    if run.checkpoint:  # the figures of the run's end are not its own
        step = step_of(run.adapter)
        manifest = {**manifest, "steps": step, "scores": {}}
        metrics = [line for line in metrics if line["step"] <= step]
    templates = environment(Path(__file__).parent, json=partial(json.dumps, ensure_ascii=False))
    row = examples(job.template)[1]
    prompt = job.template.prompt(row)
    return templates.get_template("card.md.jinja").render(
        job=job,
        run=run,
        manifest=manifest,
        data=manifest["data"],
        format=manifest["template"],
        exporter=exporter,
        done=done,
        licence=base_licence(manifest["model"]),
        SEE_BASE=SEE_BASE,
        usage=exporter.usage(job).strip(),
        prompt=prompt,
        answer=job.template.render(row)[len(prompt) :],
        changes=changes(metrics, manifest),
        settings=_settings(job),
    )


def base_licence(base: str) -> str:
    """The licence of a base: from its README's front matter, else by its name, else SEE_BASE."""
    readme = Path(base) / "README.md"
    if readme.is_file():
        front = re.match(r"---\n(.*?)\n---", readme.read_text("utf-8", "replace"), re.DOTALL)
        if front and (licence := re.search(r"^license: *(\S+)", front[1], re.MULTILINE)):
            return licence[1].strip("\"'")
    known = (licence for part, licence in LICENCES.items() if part in Path(base).name.lower())
    return next(known, SEE_BASE)


def _settings(job: RunExport) -> str:
    """The settings as YAML, without those that name a place on this machine."""
    import yaml

    values = job.run.config.as_dict()
    del values["output"]
    values["model"]["name"] = job.base_name
    for name in ("train", "eval", "sources"):
        del values["data"][name]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).strip()
