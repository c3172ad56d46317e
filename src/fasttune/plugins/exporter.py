"""Exporters and what they work with: the API of plugins that add a form of export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fasttune.errors import FasttuneError
from fasttune.formats.chat import ChatFormat
from fasttune.formats.row import Row
from fasttune.formats.template import Template

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from its run; docs/export.md says what the constants come from.

    Attributes:
        logits: largest |difference| of any logit; None where no bound makes sense.
        kl: mean KL divergence in nats.
    """

    logits: float | None
    kl: float


EXACT = Bounds(logits=1e-3, kl=1e-6)
"""The same numbers summed in another order, in fp32."""
ROUNDED = Bounds(logits=10.0, kl=0.05)
"""Weights rounded to 16 bits on one side."""
QUANTISED = Bounds(logits=None, kl=1.0)
"""The run computed with NF4 weights and the export does not."""


class Reader(Protocol):
    """A loaded model with its tokenizer: the run's, or the export's."""

    def prompt_ids(self, row: Row) -> list[int]:
        """The ids of the prompt, as a program that uses this model makes them."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each of the ids: [len(ids), vocabulary], float32."""

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """At most `count` ids generated greedily after `ids`, EOS included."""

    def eos_ids(self) -> set[int]:
        """The ids at which generation stops."""


class ExportJob(Protocol):
    """What an exporter has to do, and what it builds on.

    Attributes:
        name: the run's name.
        template: the run's format, with the run's own system text.
        max_length: the most tokens of a row of the run, its answer included.
        folder: an empty temporary folder to fill; it is renamed at the end, deleted on failure.
        options: every option of the exporter with its value.
    """

    name: str
    template: Template
    max_length: int
    folder: Path
    options: Mapping[str, str]

    def say(self, line: str) -> None:
        """Show a line of progress."""

    def write_merged(self, folder: Path, into: str = "original") -> None:
        """Write the merged model, its tokenizer and its chat template to an existing folder.

        Args:
            into: "original" merges into the base's own weights, "dequantized" into the NF4 rounded
                ones that training saw.

        Raises:
            FasttuneError: adapter and base do not fit together, or the run was not quantised and
                `into` is "dequantized".
        """

    def merged_bytes(self) -> int:
        """The size on the disk of what `write_merged` writes."""

    def open_merged(self, folder: Path) -> Reader:
        """Load a merged model as transformers does; its chat template, if any, makes prompts."""

    def write_adapter(self, folder: Path) -> None:
        """Copy the adapter with its tokenizer and the format."""

    def open_adapter(self, folder: Path) -> Reader:
        """Load the base of the run, with the adapter in `folder`."""

    def bounds(self) -> Bounds:
        """The bounds of a merged model that keeps the base's dtype."""

    def tokenizer(self) -> Any:
        """The run's tokenizer, as transformers loads it."""

    def chat_format(self) -> ChatFormat:
        """The template for programs that do not know fasttune."""

    def example_row(self) -> Row:
        """A made-up row, to show how the export is used."""


class Exporter:
    """A form of export: subclass it, name it, write and open.

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
        """Load what was written, to compare it with the run."""
        raise FasttuneError(
            f"exporter '{self.name}' has no open(), so what it writes cannot be verified",
            type(self).__name__,
            "give --no-verify",
        )

    def require_reader(self) -> None:
        """Raise a FasttuneError if `open` cannot work here, for example without a library. It is
        called before the export is written."""

    def bounds(self, job: ExportJob) -> Bounds:
        """How far the export may be from the run; override it if the form rounds weights."""
        return job.bounds()

    def usage(self, job: ExportJob) -> str:
        """Markdown for the model card: how another program uses `job.folder`."""
        return ""

    def needed_bytes(self, job: ExportJob) -> int:
        """The size of the export on the disk, checked before writing; 0 if it is not known."""
        return 0
