"""Generated answers and the figures taken on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from fasttune.errors import blame
from fasttune.files import require_name
from fasttune.formats.row import Row
from fasttune.text.repetition import ends_in_loop


@dataclass(frozen=True)
class Likelihood:
    """How probable a model finds a row's reference response.

    Only tokens that carry text of the response itself count, not the tags around it, and not EOS.

    Attributes:
        bits: -log2 of their probability after the prompt and the sections that the model itself
            wrote before its response, for instance its own reasoning.
        bits_reference: the same after the reference's sections; None where the row lacks one.
        bytes: length of the response in UTF-8.
        eos: probability of EOS at the reference's end; None likewise.
    """

    bits: float
    bits_reference: float | None
    bytes: int
    eos: float | None


@dataclass(frozen=True)
class Answer:
    """What a model wrote for one row.

    Attributes:
        row: the row it was prompted with, targets included where the row has them.
        text: the completion, EOS removed.
        sections: what the template's `parse` made of the text.
        stop: "eos" where the model ended the answer itself, "length" where it ran out of tokens,
            "loop" where it was stopped because it repeated itself.
        tokens: number of generated tokens, EOS included.
        likelihood: of the row's reference, where it was taken.
        samples: the responses of all answers that were sampled for the row, where this one was
            chosen among them by `vote`.
    """

    row: Row
    text: str
    sections: dict[str, str]
    stop: str
    tokens: int
    likelihood: Likelihood | None = None
    samples: tuple[str, ...] = ()

    @property
    def ending(self) -> str:
        """As `stop`, but "loop" also where it ran out of tokens while it repeated itself."""
        looped = self.stop == "length" and ends_in_loop(self.text)
        return "loop" if looped else self.stop

    @property
    def response(self) -> str:
        """What a reader gets: the section "response", or where none is called so, the last."""
        return self.sections.get("response", next(reversed(self.sections.values()), ""))

    @property
    def agreeing(self) -> int:
        """How many of the samples give this response, white space around it aside."""
        return [sample.strip() for sample in self.samples].count(self.response.strip())

    @property
    def readable(self) -> str:
        """The response, or where it is blank all that was written instead."""
        return self.response if self.response.strip() else self.text


@dataclass(frozen=True)
class Metric:
    """A figure on answers, taken answer by answer.

    Attributes:
        name: the key under which it is saved.
        description: one line for people.
        measure: answer -> its value; or (amount, weight), for instance bits and bytes; or None
            where the figure means nothing for this answer.
        better: which way is better; "" for a figure that describes and does not judge.
    """

    name: str
    description: str
    measure: Callable[[Answer], float | tuple[float, float] | None]
    better: Literal["higher", "lower", ""] = ""

    def __post_init__(self) -> None:
        require_name(self.name, "a metric", "name")
        if not callable(self.measure) or self.better not in ("higher", "lower", ""):
            raise TypeError(
                f"the metric '{self.name}' needs a function, and better as 'higher', 'lower' or ''"
            )

    def amounts(self, answers: Sequence[Answer]) -> list[tuple[float, float]]:
        """(amount, weight) per answer, (0, 0) where the figure means nothing.

        The metric of many answers is the sum of the amounts over the sum of the weights.

        Raises:
            FasttuneError: the function fails, or returns no figure.
        """
        return [self._amount(answer) for answer in answers]

    def _amount(self, answer: Answer) -> tuple[float, float]:
        try:
            value = self.measure(answer)
            if value is None:
                return 0.0, 0.0
            amount, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
            if _is_figure(amount) and _is_figure(weight) and weight >= 0:
                return float(amount), float(weight)
            raise TypeError(f"it returned {value!r:.100}, which is not a figure")
        except Exception as error:
            file = Path(getattr(getattr(self.measure, "__code__", None), "co_filename", ""))
            raise blame(
                error,
                f"the metric '{self.name}'",
                file,
                f"answer: {answer.text[:80]!r}",
                "fix its plugin, or leave it out with FASTTUNE_PLUGINS=name,name",
            ) from error


def _is_figure(value: object) -> bool:
    """Whether it is a number, and neither infinite nor nan."""
    return isinstance(value, Real) and math.isfinite(value)


def score(answers: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, float]:
    """Metric name -> its value, for the metrics that mean something for any of the answers."""
    scores = {}
    for metric in metrics:
        amounts = metric.amounts(answers)
        if weight := sum(weight for _, weight in amounts):
            scores[metric.name] = sum(amount for amount, _ in amounts) / weight
    return scores


def vote(answers: Sequence[Answer]) -> Answer:
    """The first of the answers to one row whose response most of them give, white space around it
    aside, with the responses of all (self-consistency, Wang et al., arXiv:2203.11171).

    An answer that did not end, or has no response, has no vote where another one has.
    """
    voting = [a for a in answers if a.stop == "eos" and a.response.strip()] or answers
    [(winner, _)] = Counter(answer.response.strip() for answer in voting).most_common(1)
    chosen = next(answer for answer in voting if answer.response.strip() == winner)
    return replace(chosen, samples=tuple(answer.response for answer in answers))


def as_dict(answer: Answer) -> dict[str, Any]:
    """An answer without its row, for JSON."""
    return {
        "text": answer.text,
        "sections": answer.sections,
        "stop": answer.stop,
        "tokens": answer.tokens,
        **({"samples": list(answer.samples)} if answer.samples else {}),
    }
