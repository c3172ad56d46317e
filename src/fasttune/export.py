"""Exports: what leaves a run for other programs, whole or not at all, and held against the run.

An exporter is a plugin that fills a folder and opens it again; everything else (the temporary
folder, the verification, the model card, the errors) is done here, the same for all of them.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json, write_text
from fasttune.template import Row, Template

if TYPE_CHECKING:
    import numpy as np

    from fasttune.chat import ChatFormat
    from fasttune.plugins import Plugins
    from fasttune.runs import Run
    from fasttune.verify import Bounds, Verification

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers keeps a tokenizer's chat template."""
RECORD = "verification.json"
"""In every export: whether it was verified, with the figures and their bounds."""
MARKER = "UNVERIFIED"
"""Only in an export that failed verification."""
SPARE = 16 * 2**20
"""Bytes kept free beside the weights, for tokenizer, configuration and card."""


class Reader(Protocol):
    """One loaded model with its tokenizer: the run's own, or what an export holds."""

    def prompt_ids(self, row: Row) -> list[int]:
        """The prompt's ids as a program that uses this model makes them."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of the ids: [len(ids), vocabulary], float32."""

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` ids generated greedily after `ids`; EOS is one of them."""

    def eos_ids(self) -> set[int]:
        """The ids at which generation stops."""


@dataclass(frozen=True)
class ExportJob:
    """What an exporter has to do.

    Attributes:
        template: the run's template; it renders as it did in training.
        folder: an empty temporary folder to fill. It gets its final name when all is done.
        options: every option of the exporter with the value that was chosen for it.
        say: shows a line of progress.
    """

    run: Run
    template: Template
    folder: Path
    options: Mapping[str, str]
    say: Callable[[str], None]

    def write_merged(self, folder: Path, into: str = "original") -> None:
        """Write the merged model, its tokenizer and its chat template to `folder`, which exists.

        Args:
            into: "original" merges into the base's own weights, "dequantized" into the NF4 rounded
                ones that training saw.

        Raises:
            FasttuneError: adapter and base do not fit together, there is no room, or the run was
                not quantised and `into` is "dequantized".
        """
        from fasttune.models.merge import write_merged

        manifest = self.run.manifest
        if into == "dequantized" and manifest["quantization"] == "none":
            raise FasttuneError(
                "this run was not quantised, so there are no dequantised weights to merge into",
                str(self.run.folder),
                "leave out --into dequantized: the original weights are those that training saw",
            )
        if self.options.get("into") == "original" and manifest["quantization"] != "none":
            self.say("note: the run trained on NF4 weights; --into dequantized stays closer to it")
        try:
            jinja = self.chat_format().jinja_for(self.tokenizer())
        except FasttuneError as error:
            self.say(f"without a chat template: {error.message}")
            jinja = None
        write_merged(
            manifest["model"],
            self.run.adapter,
            folder,
            chat_template=jinja,
            dequantize=manifest["dtype"] if into == "dequantized" else None,
            say=self.say,
        )

    def merged_bytes(self) -> int:
        """What `write_merged` will take on the disk."""
        from fasttune.models.merge import merged_bytes

        return merged_bytes(self.run.manifest["model"])

    def open_merged(self, folder: Path) -> Reader:
        """Load a merged model as any program with transformers would, prompts by its chat template
        if it has one."""
        from fasttune.verify import read_merged

        chat = self.chat_format() if (folder / CHAT_TEMPLATE).is_file() else None
        return read_merged(folder, self.template, chat, self.run.config.system)

    def write_adapter(self, folder: Path) -> None:
        """Copy the adapter with its tokenizer and the template's identity."""
        for file in sorted(self.run.adapter.iterdir()):
            if file.is_file() and file.name != "README.md":  # PEFT's form to fill in
                shutil.copy2(file, folder)

    def open_adapter(self, folder: Path) -> Reader:
        """Load the base as the run had it, with the adapter in `folder`."""
        from fasttune.verify import read_run

        return read_run(self.run.model_config, folder, self.template)

    def tokenizer(self) -> Any:
        """The run's tokenizer, as transformers loads it."""
        from fasttune.models.merge import run_tokenizer

        return run_tokenizer(self.run.adapter)

    def chat_format(self) -> ChatFormat:
        """The template for programs that do not know the plugin, with the run's own system text.

        Raises:
            FasttuneError: the template does more than place its fields.
        """
        from fasttune.chat import compile_chat_template

        return compile_chat_template(self.template, self.run.config.system)

    def example_row(self) -> Row:
        """A row to show how the export is used; no row of the run's data."""
        return {
            "instruction": "What is the highest mountain in Japan?",
            "input": "",
            "language": "en",
        }

    def prompt(self, row: Row) -> str:
        """The text generation starts from, with the run's system text where the row has none."""
        system = self.run.config.system
        return self.template.prompt({"system": system, **row} if system else row)


class Exporter:
    """A form in which a run can leave. Subclass it, name it, write and open.

    Attributes:
        name: what `--to` takes.
        description: one line for `fasttune export --list`.
        options: option -> the values it takes, the first being the default; an empty tuple takes
            any text, with "" as the default.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def write(self, job: ExportJob) -> None:
        """Fill `job.folder`."""
        raise NotImplementedError(f"{type(self).__name__}.write")

    def open(self, job: ExportJob) -> Reader:
        """Load what was written, to hold it against the run."""
        raise NotImplementedError(f"{type(self).__name__}.open")

    def bounds(self, job: ExportJob) -> Bounds:
        """How far the export may be from the run; a form that rounds the weights overrides it."""
        from fasttune.verify import bounds_for

        return bounds_for(job.run, job.options)

    def usage(self, job: ExportJob) -> str:
        """Markdown for the model card: how another program uses `job.folder`."""
        return ""

    def needed_bytes(self, job: ExportJob) -> int:
        """Room the export takes on the disk, checked before writing; 0 where it is not known."""
        return 0


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        verification: None where it was not asked for, or could not be done.
        obstacle: why it could not be done.
    """

    folder: Path
    verification: Verification | None
    obstacle: FasttuneError | None = None

    @property
    def failures(self) -> list[str]:
        """Why the export does not count as verified although that was asked for."""
        if self.obstacle is not None:
            return [str(self.obstacle)]
        return self.verification.failures if self.verification is not None else []

    def as_dict(self) -> dict[str, Any]:
        """The content of verification.json."""
        if self.verification is None:
            why = {"reason": str(self.obstacle)} if self.obstacle is not None else {}
            return {"verified": False, "status": "not run", **why}
        return self.verification.as_dict()


def export(
    run: Run,
    name: str,
    plugins: Plugins,
    target: Path | None = None,
    options: Mapping[str, str] | None = None,
    verify: bool = True,
    force: bool = False,
    rows: int = 8,
    say: Callable[[str], None] = print,
) -> Exported:
    """Write an export, verify it and give it its final name.

    An export that fails verification, or that cannot be opened for it, is kept, with a file named
    UNVERIFIED beside its figures.
    Whatever else goes wrong, and a kill at any time, leaves nothing under the final name.

    Args:
        name: of the exporter.
        target: the folder to make; by default exports/NAME in the run folder.
        options: option of the exporter -> value.
        force: replace an earlier export.
        rows: held-out rows to verify with.

    Raises:
        FasttuneError: there is no such exporter or option, the folder exists, the run has no
            adapter or its template changed, its rows cannot be read, or the disk is full.
    """
    exporter = _exporter(name, plugins)
    chosen = _options(exporter, options or {})
    target = target or run.folder / "exports" / name
    _check_target(target, force, say)
    config = run.config
    template = plugins.template(config.template)
    _check_run(run, plugins)
    job = ExportJob(run, template, target, chosen, say)
    from fasttune.card import model_card

    _check_space(target, exporter.needed_bytes(job))
    held_out = verification_rows(run, plugins, rows) if verify else []
    if verify:
        # Unsloth patches transformers, so it has to be imported before exporters import that.
        import fasttune.models.backend  # noqa: F401
    try:
        with atomic_folder(target) as folder:
            job = dataclasses.replace(job, folder=folder)
            exporter.write(job)
            try:
                done = Exported(target, _verify(exporter, job, held_out) if verify else None)
            except FasttuneError as error:  # what was written is whole, only not proved
                done = Exported(target, None, error)
            write_json(folder / RECORD, done.as_dict())
            if done.failures:
                text = "\n".join(["This export is not verified:", *done.failures])
                write_text(folder / MARKER, text + "\n")
            write_text(folder / "README.md", model_card(job, exporter, done))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(target, str(error)) from error
    return done


def verification_rows(run: Run, plugins: Plugins, count: int) -> list[Row]:
    """Up to `count` held-out rows at equal distances; training rows where none were held out.

    Raises:
        FasttuneError: the run's data cannot be read.
    """
    from fasttune.plan import prepare

    config = dataclasses.replace(run.config, model=run.model_config)
    try:
        prepared = prepare(config, plugins)
    except FasttuneError as error:
        hint = "run it where the run's data and model can be found, or give --no-verify"
        raise FasttuneError(error.message, error.where, hint) from error
    rows = prepared.eval or prepared.train
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _verify(exporter: Exporter, job: ExportJob, rows: Sequence[Row]) -> Verification:
    from fasttune.verify import compare, measure, read_run

    job.say(f"verifying with {len(rows)} rows: the run")
    # One model at a time: the run's is gone before the export is loaded.
    expected = measure(read_run(job.run.model_config, job.run.adapter, job.template), rows)
    job.say(f"verifying with {len(rows)} rows: the export")
    return compare(expected, measure(exporter.open(job), rows, expected), exporter.bounds(job))


def _exporter(name: str, plugins: Plugins) -> Exporter:
    from fasttune.errors import did_you_mean

    if name not in plugins.exporters:
        hint = did_you_mean(name, [*plugins.exporters])
        raise FasttuneError(f"no exporter is called '{name}'", "--to", hint)
    exporter: Exporter = plugins.exporters[name][0]
    return exporter


def _options(exporter: Exporter, given: Mapping[str, str]) -> dict[str, str]:
    """Defaults and the given values, checked."""
    from fasttune.errors import did_you_mean

    for option, value in given.items():
        if option not in exporter.options:
            raise FasttuneError(
                f"exporter '{exporter.name}' takes no --{option}",
                f"--{option} {value}",
                did_you_mean(option, [*exporter.options]),
            )
        allowed = exporter.options[option]
        if allowed and value not in allowed:
            raise FasttuneError(
                f"--{option} is '{value}'",
                f"exporter '{exporter.name}'",
                f"it takes {', '.join(allowed)}",
            )
    defaults = {option: values[0] if values else "" for option, values in exporter.options.items()}
    return {**defaults, **given}


def _check_run(run: Run, plugins: Plugins) -> None:
    run.check_adapter()
    try:
        run.check_template(plugins.identity(run.config.template))
    except FasttuneError as error:
        hint = "restore the template: an export has to render as the run did"
        raise FasttuneError(error.message, error.where, hint) from error


def _check_target(target: Path, force: bool, say: Callable[[str], None]) -> None:
    for left in sorted(target.parent.glob(f".{target.name}.*.tmp")):
        say(
            f"note: {left} is left of an export that was killed, or of one that still runs; "
            "if none does, delete it"
        )
    if not target.exists():
        return
    if not target.is_dir() or (any(target.iterdir()) and not (target / RECORD).is_file()):
        raise FasttuneError(
            "the target exists and is no export", str(target), "choose another folder with -o"
        )
    if not force:
        raise FasttuneError(
            "the folder exists", str(target), "choose another with -o, or replace it with --force"
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
