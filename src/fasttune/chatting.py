"""A conversation with a model, line by line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fasttune.formats.row import Row
from fasttune.formats.template import Template, tags_in
from fasttune.sampling import Sampling

if TYPE_CHECKING:
    from fasttune.generation.generator import Generator

COMMANDS = """/input TEXT  give the next question this context
/reset       start a new conversation
/base        repeat the last question to the untuned model
/help        explain these commands
/quit        end, as Ctrl-D does; Ctrl-C stops an answer"""
FRESH = "every question is a fresh prompt"


@dataclass
class Conversation:
    """A conversation with a model. If its format holds one turn, each question is a fresh prompt.

    Attributes:
        show: called with each piece of an answer.
        input: the context of the next question.
        earlier: the turns before it.
        last: the last question, with the turns before it.
        sections: of the answer to the last line, as the template parses it.
    """

    generator: Generator
    template: Template
    sampling: Sampling
    show: Callable[[str], None]
    input: str = ""
    earlier: Sequence[dict[str, str]] = ()
    last: Row | None = None
    sections: Mapping[str, str] = field(default_factory=dict)

    def take(self, line: str) -> str:
        """Carry out a command, or answer a question; return what to print afterwards."""
        self.sections = {}
        command, _, rest = line.strip().partition(" ")
        if command == "/input":
            self.input = rest.strip()
        elif command == "/reset":
            self.input, self.earlier, self.last = "", (), None
            return "" if self.template.conversations else f"{FRESH}: the format holds one turn"
        elif command == "/base":
            if self.last is None:
                return "ask something first: /base repeats the last question to the untuned model"
            with self.generator.untuned():
                answer = self.generator.stream(self.last, self.sampling, self.show)
            self.sections = answer.sections
            return f"\n[untuned, {answer.stop}, {answer.tokens} tokens]"
        elif command.startswith("/"):
            return COMMANDS
        elif command:
            return self._ask(line)
        return ""

    def _ask(self, question: str) -> str:
        asked = {"instruction": question, "input": self.input}
        row = Row.of(asked, self.earlier)
        answer = self.generator.stream(row, self.sampling, self.show)
        self.input, self.last, self.sections = "", row, answer.sections
        ended = f"\n[{answer.stop}, {answer.tokens} tokens]"
        if not self.template.conversations:
            return ended
        targets = self.template.targets.items()
        turn = {**asked, **{column: answer.sections.get(name, "") for name, column in targets}}
        if tags_in(self.template, turn):
            what = "the answer contains a tag of the format: the conversation goes on without it"
            return f"{ended}\n[{what}]"
        self.earlier = [*self.earlier, turn]
        return ended
