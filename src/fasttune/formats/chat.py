"""A prompt format for programs that do not know fasttune: messages, variables and stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fasttune.formats import jinja
from fasttune.formats.ollama import ollama_template
from fasttune.formats.parts import default_text, pieces
from fasttune.formats.row import Row
from fasttune.formats.template import Template


@dataclass(frozen=True)
class ChatFormat:
    """A prompt format for programs that do not know fasttune.

    Attributes:
        eos: text of the token that ends a turn; the Go template has no variable for it.
    """

    template: Template
    eos: str = ""

    @property
    def ollama(self) -> str:
        """The Go template of a Modelfile."""
        return ollama_template(self.template, self.eos)

    @property
    def system(self) -> str:
        """The system text where a request has none, or ""."""
        reads_it = "system" in self.template.reads
        return default_text(self.template.system) if reads_it else ""

    @property
    def stop(self) -> Sequence[str]:
        """Tags that open a section the model never writes: generation has gone wrong where it
        writes one. EOS is not among them."""
        learned = "".join(
            literal
            for part in self.template.parts
            if part.learned
            for literal, _ in pieces(part.texts[0])
        )
        return [tag for tag in self.template.tags if tag not in learned]

    @property
    def notes(self) -> Sequence[str]:
        """What other programs cannot do that fasttune does, one sentence each."""
        template = self.template
        notes = [
            "An earlier answer that begins with white space may get other token ids than in "
            "training: a chat template cannot put a border of tokens before it."
            if template.conversations
            else "Each answer is to the last user message alone: earlier turns are left out of the "
            "prompt."
        ]
        if "system" not in template.reads:
            notes.append("The format has no place for a system text: a system message is left out.")
        columns = jinja.variable_columns(template, template.reads)
        if names := [f"`{column}`" for column in sorted(columns)]:
            last = ", `input` for the last turn" if template.conversations else ""
            notes.append(
                f"Given as variables of the chat template{last}, and not available in Ollama: "
                f"{', '.join(names)}."
            )
        if template.chooses_language:
            notes.append(
                "fasttune detects the `language` of a row that does not state it; a chat template "
                "cannot, and writes the default text."
            )
        return notes

    def messages(self, row: Row) -> list[dict[str, str]]:
        """The messages of a row."""
        return jinja.messages(self.template, row)

    def kwargs(self, row: Row) -> dict[str, str]:
        """The variables of a row: placed columns, and the values that switch its fixed texts.

        Raises:
            FasttuneError: the row has an input in an earlier turn.
        """
        return jinja.variables(self.template, row)

    def render(self, row: Row, written: str, bos: str = "", eos: str = "") -> str:
        """The prompt of a row as transformers renders it with the chat template of an export.

        Args:
            written: the chat template as it was read back.
            bos, eos: texts of the tokenizer's special tokens, "" where it has none.

        Raises:
            FasttuneError: the chat template refuses the row.
        """
        tokens = {"bos_token": bos, "eos_token": eos}
        return jinja.render_jinja(written, self.messages(row), **self.kwargs(row), **tokens)
