"""A prompt format for programs that do not know fasttune: messages, variables and stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fasttune.errors import FasttuneError
from fasttune.formats.jinja import render_jinja, shown_columns, variable_columns
from fasttune.formats.ollama import ollama_template
from fasttune.formats.parts import chosen_text, split_format
from fasttune.formats.row import Row
from fasttune.formats.template import Template, at_the_answer, split_turns


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
        """The system text for a request without one, or ""."""
        reads_it = "system" in self.template.reads
        return chosen_text(self.template.system, {}) if reads_it else ""

    @property
    def stop(self) -> Sequence[str]:
        """Tags that the model never writes, because they open a given section; EOS is not among
        them."""
        texts = [part.texts[0] for part in self.template.parts if part.learned]
        learned = "".join(literal for text in texts for literal, _ in split_format(text))
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
        columns = sorted(variable_columns(template, template.reads))
        if columns:
            last = ", `input` for the last turn" if template.conversations else ""
            notes.append(
                f"Given as variables of the chat template{last}, and not available in Ollama: "
                f"{', '.join(f'`{column}`' for column in columns)}."
            )
        if template.chooses_language:
            notes.append(
                "fasttune detects the `language` of a row that does not state it; a chat template "
                "cannot, and writes the default text."
            )
        return notes

    def messages(self, row: Row) -> list[dict[str, str]]:
        """The messages of a row, with earlier answers as the model wrote them."""
        template = self.template
        messages = []
        reads_system = template.computed or "system" in template.reads
        if reads_system and row.system and not template.system_wins:
            messages.append({"role": "system", "content": row.system})
        *earlier, last = row.turns
        for turn, segments in zip(earlier, split_turns(template.opening(row)), strict=False):
            answer = "".join(segment.text for segment in at_the_answer(segments)[1])
            messages.append({"role": "user", "content": turn["instruction"]})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": last.get("instruction", "")}]

    def kwargs(self, row: Row) -> dict[str, str]:
        """The variables of a row: placed columns, and the values that switch its fixed texts.

        Raises:
            FasttuneError: an earlier turn has an `input`; the variable belongs to the last turn.
        """
        columns = variable_columns(self.template, row)
        if "input" in columns and any(turn.get("input") for turn in row.turns[:-1]):
            raise FasttuneError(
                "an earlier turn has an input, which no chat template can take",
                f"instruction: {row.get('instruction', '')[:80]}",
                "prompt with fasttune itself",
            )
        shown = shown_columns(self.template)
        chosen = {text.by: text for text in self.template.choices if text.by not in shown}
        values = {c: chosen[c].key(row.get(c)) if c in chosen else row.get(c) for c in columns}
        return {column: value for column, value in values.items() if value}

    def render(self, row: Row, chat_template: str, bos: str = "", eos: str = "") -> str:
        """The prompt of a row as transformers renders it with the chat template of an export.

        Args:
            bos, eos: texts of the tokenizer's special tokens, "" if it has none.

        Raises:
            FasttuneError: the chat template refuses the row.
        """
        tokens = {"bos_token": bos, "eos_token": eos}
        return render_jinja(chat_template, self.messages(row), **self.kwargs(row), **tokens)
