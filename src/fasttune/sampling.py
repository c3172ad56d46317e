"""How an answer's tokens are chosen, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from fasttune.config import MANY, Number, Seed
from fasttune.yaml_text import check_fields


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Greedy unless the temperature is above 0.

    The text of a field is the help of its option.
    """

    max_new_tokens: Annotated[Number, "End an answer after this many tokens."] = 256
    temperature: Annotated[
        float, Meta(ge=0, le=100), "0 takes the likeliest token; above 0 samples."
    ] = 0.0
    top_p: Annotated[
        float, Meta(gt=0, le=1), "Sample from the likeliest tokens of this total probability."
    ] = 1.0
    top_k: Annotated[
        int, Meta(ge=0, le=MANY), "Sample from this many of the likeliest tokens; 0: all."
    ] = 0
    repetition_penalty: Annotated[
        float, Meta(gt=0, le=100), "Repetition penalty (arXiv:1909.05858); 1 is none."
    ] = 1.0
    seed: Annotated[Seed, "Seed for sampling."] = 0
    stop_loops: Annotated[bool, "End an answer that repeats itself; nothing else changes."] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def config(self, tokenizer: Any) -> Any:
        """The whole generation configuration, without a model's own sampling defaults."""
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
