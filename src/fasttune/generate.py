"""Prompting a model with the very tokens it was trained on, and reading its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fasttune.config import ModelConfig
from fasttune.encode import encode_prompt, eos_id
from fasttune.errors import FasttuneError
from fasttune.metrics import Answer
from fasttune.models.load import load_for_generation

# isort: split
import torch
from transformers import GenerationConfig, StoppingCriteria, pipeline
from transformers.generation.streamers import BaseStreamer

from fasttune.packing import left_pad
from fasttune.repetition import LOOP_COPIES
from fasttune.template import Row, Template


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Greedy unless the temperature is above 0.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: keep the likeliest tokens that together have this probability.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        repetition_penalty: 1 is none (arXiv:1909.05858).
        stop_loops: end an answer that repeats itself, see `LoopStop`; changes no token before.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_loops: bool = False

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not ok:
                raise FasttuneError(f"{name} is {getattr(self, name)}", "", f"it takes {wanted}")

    def config(self, tokenizer: Any) -> GenerationConfig:
        """The whole generation configuration: a model's own sampling defaults must not slip in."""
        sample = self.temperature > 0
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=sample,
            repetition_penalty=self.repetition_penalty,
            eos_token_id=eos_id(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            use_cache=True,
            **(chosen if sample else {}),
        )


class Generator:
    """A model, its tokenizer and a template: rows in, answers out."""

    def __init__(self, model: Any, tokenizer: Any, template: Template) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template

    @classmethod
    def load(
        cls, config: ModelConfig, template: Template, adapter: Path | None = None
    ) -> Generator:
        """Load a base model, with an adapter if one is given.

        Raises:
            FasttuneError: the model cannot be loaded.
        """
        return cls(*load_for_generation(config, adapter), template)

    def answers(
        self, rows: Sequence[Row], sampling: Sampling, batch_size: int = 8
    ) -> Iterator[Answer]:
        """Answers in the order of the rows, from left-padded batches with attention masks."""
        remaining = iter(rows)
        torch.manual_seed(sampling.seed)
        while batch := list(islice(remaining, batch_size)):
            prompts = [encode_prompt(self.template, row, self.tokenizer) for row in batch]
            inputs = left_pad(prompts, self.tokenizer.pad_token_id)
            for row, completion in zip(batch, self._generate(inputs, sampling), strict=True):
                yield self.read(row, *completion)

    def stream(self, row: Row, sampling: Sampling, show: Callable[[str], None]) -> Answer:
        """Answer one row; `show` is called with each piece of text as soon as it is complete."""
        torch.manual_seed(sampling.seed)
        prompt = encode_prompt(self.template, row, self.tokenizer)
        streamer = _Streamer(self.tokenizer, show)
        inputs = left_pad([prompt], self.tokenizer.pad_token_id)
        [completion] = self._generate(inputs, sampling, streamer)
        return self.read(row, *completion)

    def via_pipeline(self, row: Row, sampling: Sampling) -> Answer:
        """Answer one row through transformers' text-generation pipeline, which tokenizes the
        prompt itself."""
        torch.manual_seed(sampling.seed)
        generate = pipeline("text-generation", model=self.model, tokenizer=self.tokenizer)
        prompt = self.template.prompt(row)
        [result] = generate(
            prompt,
            generation_config=sampling.config(self.tokenizer),
            return_tensors=True,
        )
        length = len(encode_prompt(self.template, row, self.tokenizer))
        return self.read(row, result["generated_token_ids"][length:])

    def read(self, row: Row, ids: Sequence[int], looped: bool = False) -> Answer:
        """Make an answer of generated ids, which may be padded after EOS."""
        eos = eos_id(self.tokenizer)
        ids = list(ids)
        stopped = eos in ids
        kept = ids[: ids.index(eos)] if stopped else ids
        text = _decode(self.tokenizer, kept)
        return Answer(
            row=row,
            text=text,
            sections=self.template.parse(text),
            stop="eos" if stopped else "loop" if looped else "length",
            tokens=len(kept) + stopped,
        )

    @torch.inference_mode()
    def _generate(
        self,
        inputs: dict[str, torch.Tensor],
        sampling: Sampling,
        streamer: BaseStreamer | None = None,
    ) -> list[tuple[list[int], bool]]:
        """Generated ids per prompt, without the prompt, and whether a loop ended them."""
        device = next(self.model.parameters()).device
        count, width = inputs["input_ids"].shape
        loops = LoopStop(count, width, eos_id(self.tokenizer)) if sampling.stop_loops else None
        output = self.model.generate(
            **{name: tensor.to(device) for name, tensor in inputs.items()},
            generation_config=sampling.config(self.tokenizer),
            streamer=streamer,
            stopping_criteria=[loops] if loops else None,
        )
        found = loops.found if loops else {}
        return [
            (ids[: found.get(at)], at in found) for at, ids in enumerate(output[:, width:].tolist())
        ]


class LoopStop(StoppingCriteria):
    """Ends each row of a batch that repeats itself, and touches no token.

    A row loops once its last tokens are one phrase of up to LONGEST tokens that follows on itself
    LOOP_COPIES times, and at least SHORTEST tokens repeat what stands one phrase before them: a
    ruler of dashes or a counted list is no loop yet.

    Attributes:
        found: row of the batch -> number of generated tokens at which its loop was seen.
    """

    LONGEST = 128
    SHORTEST = 32

    def __init__(self, rows: int, prompt_width: int, eos: int) -> None:
        self.found: dict[int, int] = {}
        self._width, self._eos = prompt_width, eos
        self._ended = torch.zeros(rows, dtype=torch.bool)
        # How many tokens up to now in a row equal the one `period` tokens before, per period.
        self._runs = torch.zeros(rows, self.LONGEST, dtype=torch.int64)
        periods = torch.arange(1, self.LONGEST + 1)
        self._enough = ((LOOP_COPIES - 1) * periods).clamp(min=self.SHORTEST)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        generated = input_ids[:, self._width :].cpu()
        last, before = generated[:, -1:], generated[:, :-1].flip(1)[:, : self.LONGEST]
        self._ended |= last[:, 0] == self._eos
        reach = before.shape[1]
        self._runs[:, :reach] = (self._runs[:, :reach] + 1) * (before == last)
        looping = (self._runs >= self._enough).any(1) & ~self._ended
        for row in looping.nonzero().flatten().tolist():
            self.found[row] = generated.shape[1]
        self._ended |= looping
        return looping.to(input_ids.device)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def compare_with_pipeline(generator: Generator, row: Row, sampling: Sampling) -> Answer:
    """The pipeline's answer, once it is known to be the model's own.

    Raises:
        FasttuneError: greedy decoding gives other tokens through the pipeline.
    """
    answer = generator.via_pipeline(row, sampling)
    own = generator.stream(row, sampling, lambda piece: None)
    if sampling.temperature == 0 and (answer.text, answer.stop) != (own.text, own.stop):
        raise FasttuneError(
            "transformers' pipeline gives another answer",
            f"pipeline: {answer.text!r}\nmodel:    {own.text!r}",
            "the tokenizer treats the prompt differently there; run: fasttune templates check",
        )
    return answer


class _Streamer(BaseStreamer):
    """Shows text as it comes, holding back what may still change: a character's first bytes, and
    EOS."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self._tokenizer, self._show = tokenizer, show
        self._eos = eos_id(tokenizer)
        self._ids: list[int] = []
        self._shown = 0
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # the first call brings the prompt
            self._prompt_seen = True
            return
        self._ids += [token for token in value.reshape(-1).tolist() if token != self._eos]
        text = _decode(self._tokenizer, self._ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._emit(text)

    def end(self) -> None:
        self._emit(_decode(self._tokenizer, self._ids))

    def _emit(self, text: str) -> None:
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)
