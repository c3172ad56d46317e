"""Prompting a model with the very tokens it was trained on, and reading its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from fasttune.config import ModelConfig
from fasttune.data.check import require_prompt
from fasttune.data.conversations import from_messages
from fasttune.encoding.encode import batches, encode_prompt, eos_id
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.generation.decoding import Decoding
from fasttune.models.base import positions
from fasttune.models.choices import Choices
from fasttune.models.load import load_for_generation
from fasttune.plugins.metric import Answer
from fasttune.sampling import Sampling as Sampling

WINDOW = 8
"""Batches whose rows are sorted by length together."""


@dataclass(frozen=True, eq=False, repr=False)
class Generator:
    """A model, its tokenizer and a template: rows in, answers out. `choices` say whether it runs
    under autocast."""

    model: Any
    tokenizer: Any
    template: Template
    choices: Choices

    def __repr__(self) -> str:
        name = Path(self.model.config._name_or_path or "model").name
        return f"<Generator: {name} under {self.template.name}>"

    @classmethod
    def load(
        cls, config: ModelConfig, template: Template, adapter: Path | None = None
    ) -> Generator:
        """Load a base model, with an adapter if one is given."""
        model, tokenizer, choices = load_for_generation(config, adapter, template.end)
        return cls(model, tokenizer, template, choices)

    def answer(
        self, instruction: str | Sequence[Mapping[str, str]], input: str = "", **sampling: Any
    ) -> Answer:
        """Answer one question, or the last message of a conversation.

        Args:
            instruction: the question, or messages as {"role": "user", "content": "Hi."}, the last
                of them from the user.
            input: context for it.
            sampling: fields of `Sampling`, as max_new_tokens=64.

        Raises:
            FasttuneError: the messages are no conversation, or training would refuse them.
        """
        if isinstance(instruction, str):
            row = Row.of({"instruction": instruction, "input": input})
        else:
            row = from_messages(instruction).with_turn({"input": input} if input else {})
            if "output" in row:
                what = "there is nothing to answer"
                raise FasttuneError(what, "the last message", "end with one from the user")
        return next(self.answers([row], Sampling(**sampling), 1))

    def prompt(self, row: Mapping[str, str]) -> str:
        """The text generation starts from."""
        return self.template.prompt(require_prompt(row, self.template))

    def _prompt_ids(self, row: Row) -> list[int]:
        """The ids generation starts from. What training would refuse is refused."""
        asked = require_prompt(row, self.template, self.tokenizer.eos_token)
        ids = encode_prompt(self.template, asked, self.tokenizer)
        rows = self.model.get_input_embeddings().num_embeddings
        if max(ids) >= rows:  # of a special token, see `load_tokenizer`
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            what = f"the text contains {token}, for which the model has no embedding"
            raise FasttuneError(what, f"id {max(ids)} of {rows}", "remove it from the text")
        return ids

    def answers(
        self,
        rows: Sequence[Mapping[str, str]],
        sampling: Sampling,
        batch_size: int,
        report: Callable[[int], None] = lambda done: None,
    ) -> Iterator[Answer]:
        """Answers in the order of the rows; `report` gets their number after every batch.

        Rows of like length are batched, the longest first, within windows of WINDOW batches: a long
        file gives its first answers after one window. Greedy tokens are those of one row at a
        time, up to rounding; sampled ones depend on the seed and on the batch a row is in.
        """
        asked = [Row.of(row) for row in rows]
        prompts = [self._prompt_ids(row) for row in asked]
        torch.manual_seed(sampling.seed)
        decoding = self._decoding(sampling, prompts)
        for window in batches(range(len(rows)), WINDOW * batch_size):
            order = sorted(window, key=lambda at: len(prompts[at]), reverse=True)
            completions: dict[int, tuple[list[int], bool]] = {}
            for batch in batches(order, batch_size):
                new = decoding([prompts[at] for at in batch])
                completions.update(zip(batch, new, strict=True))
                report(window[0] + len(completions))
            for at in window:
                yield self.read(asked[at], *completions[at])

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Answer without the adapter within the block."""
        if not hasattr(self.model, "disable_adapter"):
            raise FasttuneError("this is the untuned model", "", "give a run to compare it with")
        with self.model.disable_adapter():
            yield

    def stream(
        self, row: Mapping[str, str], sampling: Sampling, show: Callable[[str], None]
    ) -> Answer:
        """Answer one row; `show` is called with each piece of text as soon as it is complete."""
        torch.manual_seed(sampling.seed)
        asked = Row.of(row)
        prompt = self._prompt_ids(asked)
        config = self.model.config.to_dict()
        most = positions(config.get("text_config") or config) or math.inf
        if len(prompt) >= most:
            raise FasttuneError(
                f"the prompt has {len(prompt)} tokens, and the model reads {most}",
                str(self.model.config._name_or_path),
                "ask with less text; in a chat, /reset starts a new conversation",
            )
        streamer = _Streamer(self.tokenizer, show)
        [completion] = self._decoding(sampling, [prompt])([prompt], streamer)
        return self.read(asked, *completion)

    def read(self, row: Row, ids: Sequence[int], looped: bool = False) -> Answer:
        """Make an answer of generated ids, which may be padded after EOS."""
        eos = eos_id(self.tokenizer)
        stopped = eos in ids
        kept = ids[: ids.index(eos)] if stopped else ids
        text = _decode(self.tokenizer, kept)
        return Answer(
            row=row,
            text=text,
            sections=self.template.parsed(text),
            stop="eos" if stopped else "loop" if looped else "length",
            tokens=len(kept) + stopped,
            targets=self.template.targets,
        )

    def _decoding(self, sampling: Sampling, prompts: Sequence[list[int]]) -> Decoding:
        config = sampling.config(self.tokenizer)
        return Decoding(self.model, self.choices, config, sampling.stop_loops, prompts)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


class _Streamer(BaseStreamer):
    """Shows text as it comes, but not EOS, nor a character before its last byte."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self._tokenizer, self._show = tokenizer, show
        self._ids: list[int] | None = None
        self._shown = 0

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:  # the first call brings the prompt
            self._ids = []
            return
        eos = eos_id(self._tokenizer)
        self._ids += [token for token in value.reshape(-1).tolist() if token != eos]
        if not _decode(self._tokenizer, self._ids).endswith("\N{REPLACEMENT CHARACTER}"):
            self.end()

    def end(self) -> None:
        text = _decode(self._tokenizer, self._ids or [])
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)
