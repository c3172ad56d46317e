"""What an export needs of a format: its chat templates, proved on a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fasttune.encoding.encode import encode_prompt
from fasttune.errors import FasttuneError
from fasttune.formats import jinja
from fasttune.formats.examples import examples
from fasttune.formats.ollama import ollama_template
from fasttune.formats.parts import Choice, pieces
from fasttune.formats.row import Row
from fasttune.formats.template import Template


@dataclass(frozen=True)
class Chat:
    """A `ChatFormat` of a template.

    Args:
        eos: text of the token that ends a turn; the Go template has no variable for it.
    """

    template: Template
    eos: str = ""

    @property
    def jinja(self) -> str:
        """For tokenizers that add no BOS; `jinja_for` is for any."""
        return jinja.chat_template(self.template)

    @property
    def ollama(self) -> str:
        return ollama_template(self.template, self.eos)

    @property
    def system(self) -> str:
        system = self.template.system
        reads = "system" in self.template.reads
        if isinstance(system, Choice):
            system = system.texts[system.default]
        return system if reads else ""

    @property
    def stop(self) -> Sequence[str]:
        learned = "".join(
            literal
            for part in self.template.parts
            if part.learned
            for literal, _ in pieces(part.texts[0])
        )
        return [tag for tag in self.template.tags if tag not in learned]

    @property
    def notes(self) -> Sequence[str]:
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
        apart = ("system", "instruction", *template.targets.values())
        if names := [f"`{column}`" for column in sorted(template.reads) if column not in apart]:
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
        return jinja.messages(self.template, row)

    def kwargs(self, row: Row) -> dict[str, str]:
        return jinja.variables(self.template, row)

    def jinja_for(self, tokenizer: Any) -> str:
        """The chat template with BOS where the tokenizer adds it: apply_chat_template does not.

        Raises:
            FasttuneError: the prompts that the chat template gives have other ids than the run's.
        """
        written = self.jinja
        if special := list(tokenizer("").input_ids):
            if special != [tokenizer.bos_token_id]:
                text = tokenizer.convert_ids_to_tokens(special)
                raise FasttuneError(
                    "the tokenizer adds other tokens than BOS, which no chat template can do",
                    f"{getattr(tokenizer, 'name_or_path', '')}: {' '.join(text)}",
                    "export without a chat template",
                )
            written = "{{- bos_token -}}\n" + written
        for row in examples(self.template):
            asked = row.without([*self.template.targets.values()])
            plain = Row([{**t, "input": ""} for t in row.turns[:-1]] + [asked.turns[-1]],
                        row.system, asked.columns)  # fmt: skip
            ids = tokenizer.apply_chat_template(
                self.messages(plain),
                chat_template=written,
                add_generation_prompt=True,
                return_dict=False,
                **self.kwargs(plain),
            )
            if list(ids) != encode_prompt(self.template, plain, tokenizer):
                raise FasttuneError(
                    "the tokenizer gives a chat template's text other ids than a prompt",
                    f"{getattr(tokenizer, 'name_or_path', '')}: {row['instruction']}",
                    "export without a chat template",
                )
        return written

    def render(self, row: Row, written: str, bos: str = "", eos: str = "") -> str:
        tokens = {"bos_token": bos, "eos_token": eos}
        return jinja.render_jinja(written, self.messages(row), **self.kwargs(row), **tokens)
