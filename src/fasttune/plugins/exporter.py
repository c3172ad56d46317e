"""What an exporter is and what it works with: the API of plugins that add a form of export."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fasttune.errors import FasttuneError
from fasttune.plugins.template import Row, Template

if TYPE_CHECKING:
    import numpy as np

    from fasttune.exports.chat_template.jinja import ChatFormat
    from fasttune.runs import Run

log = logging.getLogger(__name__)

CHAT_TEMPLATE = "chat_template.jinja"
"""Where transformers keeps a tokenizer's chat template."""


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from its run.

    Prompt ids and EOS have no bound: they are equal or not.

    Attributes:
        logits: largest |difference| of any logit; None where no bound makes sense.
        kl: mean KL divergence in nats.
    """

    logits: float | None
    kl: float


# What the bounds were set from is in docs/export.md.
EXACT = Bounds(logits=1e-3, kl=1e-6)
"""The same numbers added up in another order, in fp32."""
ROUNDED = Bounds(logits=10.0, kl=0.05)
"""Weights rounded to 16 bits on one side: measured up to 4.4 and 0.011 on the demo model, where the
sign of one tensor makes 19.8 and 0.19 at least."""
QUANTISED = Bounds(logits=None, kl=1.0)
"""The run computed with NF4 weights and the export does not: the gap is the quantisation's own."""


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
    """

    run: Run
    template: Template
    folder: Path
    options: Mapping[str, str]

    def say(self, line: str) -> None:
        """Show a line of progress."""
        log.info(line)

    def write_merged(self, folder: Path, into: str = "original") -> None:
        """Write the merged model, its tokenizer and its chat template to `folder`, which exists.

        Args:
            into: "original" merges into the base's own weights, "dequantized" into the NF4 rounded
                ones that training saw.

        Raises:
            FasttuneError: adapter and base do not fit together, there is no room, or the run was
                not quantised and `into` is "dequantized".
        """
        from fasttune.exports.merge import write_merged

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
        )

    def merged_bytes(self) -> int:
        """What `write_merged` will take on the disk."""
        from fasttune.exports.merge import merged_bytes

        return merged_bytes(self.run.manifest["model"])

    def open_merged(self, folder: Path) -> Reader:
        """Load a merged model as any program with transformers would.

        Prompts are made by its chat template, if it has one.
        """
        from fasttune.exports.readers import read_merged

        chat = self.chat_format() if (folder / CHAT_TEMPLATE).is_file() else None
        return read_merged(folder, self.template, chat, self.run.config.system)

    def write_adapter(self, folder: Path) -> None:
        """Copy the adapter with its tokenizer and the template's identity."""
        for file in sorted(self.run.adapter.iterdir()):
            if file.is_file() and file.name != "README.md":  # PEFT's form to fill in
                shutil.copy2(file, folder)

    def open_adapter(self, folder: Path) -> Reader:
        """Load the base as the run had it, with the adapter in `folder`."""
        from fasttune.exports.readers import read_run

        return read_run(self.run.model_config, folder, self.template)

    def tokenizer(self) -> Any:
        """The run's tokenizer, as transformers loads it."""
        from fasttune.exports.merge import run_tokenizer

        return run_tokenizer(self.run.adapter)

    def chat_format(self) -> ChatFormat:
        """The template for programs that do not know the plugin, with the run's own system text.

        Raises:
            FasttuneError: the template does more than place its fields.
        """
        from fasttune.exports.chat_template.jinja import compile_chat_template

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
        from fasttune.exports.verify import bounds_for

        return bounds_for(job.run, job.options)

    def usage(self, job: ExportJob) -> str:
        """Markdown for the model card: how another program uses `job.folder`."""
        return ""

    def needed_bytes(self, job: ExportJob) -> int:
        """Room the export takes on the disk, checked before writing; 0 where it is not known."""
        return 0
