"""Export a run for other programs, whole or not at all, and compare the export with the run.

An exporter only fills a folder and opens it again; this module does everything else.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttune.data.split import spread
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.exports import push as pushing
from fasttune.exports.card import model_card
from fasttune.exports.verify import Exported, Verification, judge, measure, read_exported
from fasttune.files import (
    SEAL,
    atomic_folder,
    check_seal,
    only_one,
    require_no_links,
    seal,
    unlisted,
    write_json,
    write_text,
)
from fasttune.formats.examples import examples
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.models.base import require_trained
from fasttune.models.unsloth import import_unsloth_on_gpu
from fasttune.models.whole import read_object
from fasttune.plugins.discovery import installed_plugins
from fasttune.plugins.exporter import Exporter
from fasttune.records import read_json
from fasttune.runs import Run, find_trained
from fasttune.runs.resume import usable
from fasttune.terminal import library_prints

if TYPE_CHECKING:
    from fasttune.exports.job import RunExport
    from fasttune.plugins.registry import Plugins

log = logging.getLogger(__name__)

RECORD = "verification.json"
"""In every export: whether it is verified, with the figures and their bounds."""
MARKER = "UNVERIFIED"
"""Only in an export that failed verification."""
SPARE = 16 * 2**20
"""Bytes kept free beside the weights, for tokenizer, configuration and card."""


def export(
    run: Run | str,
    to: str = "merged",
    *,
    output: str | Path | None = None,
    verify: bool = True,
    force: bool = False,
    rows: int = 8,
    push: str | None = None,
    public: bool = False,
    plugins: Plugins | None = None,
    **options: str,
) -> Exported:
    """Export a run for other programs, and compare the export with the run.

    An export that fails verification, or cannot be opened for it, is kept with a file named
    UNVERIFIED. After any other failure nothing is left under the final name.

    Args:
        to: the form; "merged", "adapter", "gguf", "ollama" or a plugin's.
        output: the folder to make; by default exports/FORM in the run folder, or, of a
            checkpoint, exports/FORM-checkpoint-N.
        force: replace an earlier export.
        rows: held-out rows to verify with.
        push: owner/name of a repository of the Hub for a verified export. An export of this run
            that exists is not made again.
        public: whether everybody may read that repository.
        options: of the form, as quant="q8_0".

    Raises:
        FasttuneError: there is no such form or option, the folder exists, the run has no adapter,
            its format needs a plugin that is not loaded, the disk is full, or the upload fails.
    """
    run = find_trained(run) if isinstance(run, str) else usable(run)
    target = Path(output) if output is not None else default_folder(run, to)
    if push is not None:
        if not verify:
            raise FasttuneError(
                "only a verified export is pushed", f"--push {push}", "leave out --no-verify"
            )
        pushing.require_repository(push)
    done = standing(run, to, options, target) if push and not force else None
    if done is None:
        from fasttune.exports.job import RunExport

        plugins = plugins or installed_plugins()
        exporter = _exporter(to, plugins)
        chosen = _options(exporter, options)
        _check_target(target, force)
        require_no_links(run.folder, f"run '{run.name}'")
        job = RunExport(run, run.template(plugins), target, chosen)
        require_trained(run)
        _check_space(target, exporter.needed_bytes(job))
        held_out = verification_rows(run, job.template, rows) if verify else None
        target.parent.mkdir(parents=True, exist_ok=True)
        busy = FasttuneError(
            "another process is writing this export", str(target), "wait for it, or end it"
        )
        with plugins.blaming(), only_one(target.with_name(f".{target.name}.lock"), busy):
            _check_target(target, force)  # another process may have written it by now
            done = _write(exporter, job, held_out, push is not None)
    if push is None or (done.verification is not None and not done.verification.verified):
        return done
    return dataclasses.replace(done, pushed=pushing.push(done, run, push, public))


def _write(
    exporter: Exporter, job: RunExport, rows: Sequence[Row] | None, to_push: bool
) -> Exported:
    """Write an export, verify it with these rows, if any, and give it its name, `job.folder`.

    Args:
        to_push: raise an error before the work if it cannot be verified.
    """
    target, obstacle = job.folder, None
    if rows is not None:
        import_unsloth_on_gpu()  # for generating; before exporters import transformers
        try:
            exporter.require_reader()
        except FasttuneError as error:
            if to_push:
                raise
            obstacle = FasttuneError(error.message, str(target), error.hint)
            log.warning("warning: %s; %s", error.message, error.hint)
    try:
        with atomic_folder(target) as folder, library_prints():
            job = dataclasses.replace(job, folder=folder)
            exporter.write(job)
            _leave_out_paths(folder)
            try:
                checked = None if rows is None or obstacle else _verify(exporter, job, rows)
                done = Exported(target, checked, obstacle)
            except FasttuneError as error:  # what was written is whole, only not proved
                where = error.where.replace(str(folder), str(target))
                log.warning("the export is not verified: %s", error.message)
                done = Exported(target, None, FasttuneError(error.message, where, error.hint))
            write_json(folder / RECORD, done.as_dict() | _made_of(job.run, job.options))
            if done.failures:
                text = "\n".join(["This export is not verified:", *done.failures])
                write_text(folder / MARKER, text + "\n")
            write_text(folder / "README.md", model_card(job, exporter, done))
            seal(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(target, str(error)) from error
    return done


def _leave_out_paths(folder: Path) -> None:
    """Remove paths of a machine from the settings of an export: a base's may hold some."""
    for file in sorted(folder.glob("*config.json")):
        values = read_object(file)
        if (kept := pushing.without_paths(values)) != values:
            log.info("left out of %s: paths of a machine", file.name)
            write_json(file, kept)


def standing(
    run: Run, name: str, options: Mapping[str, str] | None = None, target: Path | None = None
) -> Exported | None:
    """The existing export, if it was made from this adapter with these options."""
    folder = target or default_folder(run, name)
    with suppress(FasttuneError, ValueError, LookupError, TypeError):
        record = read_json(folder / RECORD, dict[str, Any])
        chosen = {**record["options"], **(options or {})}
        if record | _made_of(run, chosen) == record:
            log.info("the export is there: %s", folder)
            return read_exported(folder, record)
    return None


def default_folder(run: Run, form: str) -> Path:
    """Where the export of a run or a checkpoint is, unless --output says another place."""
    return run.folder / "exports" / "-".join(filter(None, (form, run.checkpoint)))


def _made_of(run: Run, options: Mapping[str, str]) -> dict[str, Any]:
    of = {"checkpoint": run.checkpoint} if run.checkpoint else {}
    return {"adapter_sha256": run.adapter_sha256, "options": dict(options), **of}


def verification_rows(run: Run, template: Template, count: int) -> list[Row]:
    """Up to `count` held-out rows, evenly spaced; made-up rows if the run holds out none."""
    held_out = run.held_out()
    if not held_out:
        log.info("the run holds no rows out: verifying with made-up prompts")
    return spread(held_out or examples(template), count)


def _verify(exporter: Exporter, job: RunExport, rows: Sequence[Row]) -> Verification:
    from fasttune.exports.opening import open_run_model

    log.info("verifying with %d rows: the run", len(rows))
    # One model at a time: the run's is gone before the export is loaded.
    expected = measure(open_run_model(job.run.model_config, job.run.adapter, job.template), rows)
    gc.collect()  # PEFT's and Unsloth's wrappers refer to each other
    log.info("verifying with %d rows: the export", len(rows))
    return judge(expected, measure(exporter.open(job), rows, expected), exporter.bounds(job))


def _exporter(name: str, plugins: Plugins) -> Exporter:
    if name not in plugins.exporters:
        hint = did_you_mean(name, [*plugins.exporters])
        raise FasttuneError(f"no exporter is called '{name}'", "--to", hint)
    exporter: Exporter = plugins.exporters[name][0]
    return exporter


def _options(exporter: Exporter, given: Mapping[str, str]) -> dict[str, str]:
    """The defaults and the given values."""
    exporter_name = f"exporter '{exporter.name}'"
    for option, value in given.items():
        if option not in exporter.options:
            hint = did_you_mean(option, [*exporter.options])
            raise FasttuneError(f"{exporter_name} takes no --{option}", f"--{option} {value}", hint)
        allowed = exporter.options[option]
        if allowed and value not in allowed:
            hint = f"it takes {', '.join(allowed)}"
            raise FasttuneError(f"--{option} is '{value}'", exporter_name, hint)
    defaults = {option: values[0] if values else "" for option, values in exporter.options.items()}
    return {**defaults, **given}


def _check_target(target: Path, force: bool) -> None:
    for left in sorted(target.parent.glob(f".{target.name}.*.tmp")):
        log.warning("note: delete %s, unless another export is running: one was killed", left)
    other = "choose another folder with -o"
    if target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise FasttuneError("the target is or contains the current folder", str(target), other)
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise FasttuneError("the target is not a folder", str(target), other)
    if any(target.iterdir()):
        if not _is_export(target):
            raise FasttuneError("the folder exists and is not an export", str(target), other)
        if not force:
            hint = f"{other}, or replace it with --force"
            raise FasttuneError("the folder exists", str(target), hint)
        _require_own(target, other)


def _is_export(target: Path) -> bool:
    """Whether a folder has a seal and a record as exports have them."""
    if not ((target / RECORD).is_file() and os.path.lexists(target / SEAL)):
        return False
    with suppress(FasttuneError):
        return read_json(target / RECORD, dict[str, Any]).keys() >= {"verified", "adapter_sha256"}
    return False


def _require_own(target: Path, other: str) -> None:
    """Refuse to replace anything but an export, just as fasttune wrote it."""
    hint = f"{other}, or move your files elsewhere and delete this folder"
    require_no_links(target, "the export")
    check_seal(target, "the export", hint)
    if foreign := unlisted(target):
        raise FasttuneError(
            "the folder contains files that fasttune did not write, so it is not replaced",
            "\n".join(map(str, foreign[:10])),
            hint,
        )


def _check_space(target: Path, needed: int) -> None:
    parent = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if needed and free < needed + SPARE:
        needs = f"it takes {(needed + SPARE) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free"
        raise _full(target, needs)


def _full(target: Path, reason: str) -> FasttuneError:
    return FasttuneError(
        "there is no room for the export",
        f"{target}: {reason}",
        "free some space, or choose a folder on another disk with -o",
    )
