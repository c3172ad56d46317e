"""The model card of an export: where it comes from, how to use it, how close it is to its run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.config import dump_config
from fasttune.formats.examples import examples

if TYPE_CHECKING:
    from fasttune.exports.job import RunExport
    from fasttune.exports.verify import Exported
    from fasttune.plugins.exporter import Exporter

LICENCES = {"phi-2": "mit", "smollm2": "apache-2.0"}
"""Part of a base's name -> its licence, for folders that do not say it themselves."""
SEE_BASE = "see the base model"


def model_card(job: RunExport, exporter: Exporter, done: Exported) -> str:
    """README.md of the export, with the front matter that the Hub reads.

    A path of this machine is not told, and no row of the run's data is shown.
    """
    run = job.run
    manifest, config = run.manifest, run.config
    base = manifest["model"]
    name = job.base_name
    licence = base_licence(base)
    template, data = manifest["template"], manifest["data"]
    source = (
        f"{template['distribution']} {template['version']}"
        if template["distribution"]
        else "a file"
    )
    front = {
        "license": licence if licence != SEE_BASE else "other",
        "base_model": name,
        "pipeline_tag": "text-generation",
        "tags": ["fasttune", template["name"]],
    }
    quantised = (
        ""
        if manifest["quantization"] == "none"
        else f", {manifest['quantization'].upper()} quantised"
    )
    layers = " ".join(manifest["lora"]["layers"])
    chosen = ", ".join(f"{option} {value}" for option, value in job.options.items())
    parts = [
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        f"# {name}, tuned on the format `{template['name']}`",
        "",
        f"{exporter.description[:1].upper()}{exporter.description[1:]}"
        + (f" ({chosen})" if chosen else "")
        + f". Exported by fasttune from the run `{run.name}`.",
        "",
        f"- base model: {name}; licence: {licence}",
        f"- training: LoRA on {layers}, {manifest['lora']['parameters'] / 1e6:.2f} M parameters, "
        f"base in {manifest['dtype']}{quantised}, {manifest.get('steps', '?')} steps",
        f"- data: {data['train_rows']} rows ({data['train_tokens']} tokens), "
        f"SHA-256 `{data['train_sha256']}`; "
        f"{data['eval_rows']} held out, SHA-256 `{data['heldout_sha256']}`",
        f"- format: `{template['name']}` from {source}, identity `{template['identity']}`",
        "",
        *_section("Use", exporter.usage(job).strip().splitlines()),
        *_section("Format", _example(job)),
        *_section("Figures", _figures(run.metrics(), manifest)),
        *_section("Verification", _verification(done, bool(data["eval_rows"]))),
        *_section("Settings", ["```yaml", *_settings(dump_config(config), base, name), "```"]),
        *_section("Versions", [", ".join(f"{k} {v}" for k, v in manifest["versions"].items())]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def base_licence(base: str) -> str:
    """The licence of a base: as its README's front matter says, else by its name, else SEE_BASE."""
    readme = Path(base) / "README.md"
    if readme.is_file():
        front = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8"), re.DOTALL)
        if front and (found := re.search(r"^license: *(\S+)", front[1], re.MULTILINE)):
            return found[1].strip("\"'")
    known = (licence for part, licence in LICENCES.items() if part in Path(base).name.lower())
    return next(known, SEE_BASE)


def _section(heading: str, lines: Iterable[str]) -> list[str]:
    body = list(lines)
    return [f"## {heading}", "", *body, ""] if body else []


def _example(job: RunExport) -> list[str]:
    """A made-up row as it is rendered for training; what the model writes begins after the
    prompt."""
    row = examples(job.template)[1]
    prompt, text = job.template.prompt(row), job.template.render(row)
    fence = "`" * 4
    return [
        "The prompt of a row is, to the character (a JSON text):",
        "",
        f"{fence}json",
        json.dumps(prompt, ensure_ascii=False),
        fence,
        "",
        "and the model answers in this form, then ends with EOS:",
        "",
        f"{fence}json",
        json.dumps(text[len(prompt) :], ensure_ascii=False),
        fence,
    ]


def _figures(metrics: list[dict[str, Any]], manifest: Mapping[str, Any]) -> list[str]:
    evaluated = [line for line in metrics if "eval_loss" in line]
    scores = manifest.get("scores", {})
    lines = []
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        for key in last:
            if key.startswith("eval_loss") and key in first:
                section = key.removeprefix("eval_loss").removeprefix("_")
                label = f"held-out loss, {section}" if section else "held-out loss"
                lines.append(f"| {label} (nats per token) | {first[key]:.4f} | {last[key]:.4f} |")
    for name, value in scores.get("after", {}).items():
        lines.append(f"| {name} | {scores['before'].get(name, math.nan):.2f} | {value:.2f} |")
    return ["| | before | after |", "|---|---:|---:|", *lines] if lines else []


def _verification(done: Exported, held_out: bool) -> list[str]:
    found = done.verification
    if found is None:
        return ["This export was **not verified** against its run."]
    verdict = (
        f"Verified against the run on {found.rows} {'held-out' if held_out else 'made-up'} prompts."
        if found.verified
        else "This export **failed verification** against its run."
    )
    table = [
        f"| {name} | {value} | {bound} |".replace("|Δlogit|", "Δlogit")
        for name, value, bound in found.lines()
    ]
    problems = [f"- {failure}" for failure in found.failures]
    return [verdict, "", "| figure | export | bound |", "|---|---|---|", *table] + (
        ["", *problems] if problems else []
    )


def _settings(dumped: str, base: str, name: str) -> list[str]:
    """The settings, without those that name a place on this machine."""
    private = re.compile(r"^(output:|  train: |  eval: )")
    kept = [line for line in dumped.splitlines() if not private.match(line)]
    return [line.replace(base, name) for line in kept]
