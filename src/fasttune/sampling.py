"""How an answer's tokens are chosen. Nothing here imports torch before a model is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fasttune.config import MANY, SEEDS, Check, number, whole
from fasttune.errors import FasttuneError

CHECKS: dict[str, Check] = {
    "max_new_tokens": whole(1, MANY),
    "temperature": number(0, 100),
    "top_p": number(0, 1, above=True),
    "top_k": whole(0, MANY),
    "repetition_penalty": number(0, 100, above=True),
    "seed": whole(0, SEEDS),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Greedy unless the temperature is above 0.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: keep the likeliest tokens that together have this probability.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        repetition_penalty: 1 is none (arXiv:1909.05858).
        stop_loops: end an answer that repeats itself, see `generation.loops.LoopStop`; changes no
            token before.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_loops: bool = False

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            value = getattr(self, name)
            try:
                check(value)
            except ValueError as error:
                option = f"--{name.replace('_', '-')} {value}"
                raise FasttuneError(f"{name} is {value}", option, f"it takes {error}") from error

    def config(self, tokenizer: Any) -> Any:
        """The whole generation configuration: a model's own sampling defaults must not slip in."""
        from transformers import GenerationConfig

        sample = self.temperature > 0
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=sample,
            repetition_penalty=self.repetition_penalty,
            eos_token_id=int(tokenizer.eos_token_id),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            use_cache=True,
            **(chosen if sample else {}),
        )
