"""Generated answers and their metrics."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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

    Only tokens with text of the response count, without the tags around it and EOS.

    Attributes:
        bits: -log2 of their probability after the prompt and the sections that the model wrote
            before its response, for instance its reasoning.
        bits_reference: the same after the reference's sections; None if the row lacks one.
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
        row: the row it was prompted with, targets included.
        text: the completion, EOS removed.
        sections: what the template's `parse` made of the text.
        stop: "eos" if the model ended the answer, "length" if it ran out of tokens, "loop" if it
            was stopped because it repeated itself.
        tokens: number of generated tokens, EOS included.
        likelihood: of the row's reference, if it was computed.
        samples: the responses of all answers to the row, if `vote` chose this one.
        targets: section -> the column of the row that holds what it should be.
    """

    row: Row
    text: str
    sections: dict[str, str]
    stop: str
    tokens: int
    likelihood: Likelihood | None = None
    samples: tuple[str, ...] = ()
    targets: Mapping[str, str] = field(default_factory=lambda: {"response": "output"})

    @property
    def ending(self) -> str:
        """As `stop`, but "loop" also if it ran out of tokens while it repeated itself."""
        looped = self.stop == "length" and ends_in_loop(self.text)
        return "loop" if looped else self.stop

    @property
    def response(self) -> str:
        """The section "response", or the last one if none has this name."""
        return self.sections.get("response", next(reversed(self.sections.values()), ""))

    @property
    def references(self) -> dict[str, str]:
        """Section -> what it should be; without the sections for which the row has no text."""
        texts = {section: self.row.get(column, "") for section, column in self.targets.items()}
        return {section: text for section, text in texts.items() if text.strip()}

    @property
    def reference(self) -> str:
        """What the response should be; "" if the row does not have it."""
        name = "response" if "response" in self.targets else [*self.targets][-1]
        return self.references.get(name, "")

    @property
    def agreeing(self) -> int:
        """How many samples give this response, ignoring white space around it."""
        return [sample.strip() for sample in self.samples].count(self.response.strip())

    @property
    def readable(self) -> str:
        """The response, or the whole text if it is blank."""
        return self.response if self.response.strip() else self.text


@dataclass(frozen=True)
class Metric:
    """A metric of answers, computed answer by answer.

    Attributes:
        name: the key under which it is saved.
        description: one line for people.
        measure: answer -> its value; or (amount, weight), for instance bits and bytes; or None if
            the metric means nothing for this answer.
        better: which direction is better; "" if neither is.
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
        """(amount, weight) per answer; (0, 0) if the metric means nothing for it.

        The metric of many answers is the sum of the amounts over the sum of the weights.

        Raises:
            FasttuneError: the function fails, or returns no number.
        """
        return [self._amount(answer) for answer in answers]

    def _amount(self, answer: Answer) -> tuple[float, float]:
        try:
            value = self.measure(answer)
            if value is None:
                return 0.0, 0.0
            amount, weight = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
            numbers = all(isinstance(n, Real) and math.isfinite(n) for n in (amount, weight))
            if not numbers or weight < 0:
                raise TypeError(f"it returned {value!r:.100}, which is not a figure")
            return float(amount), float(weight)
        except Exception as error:
            file = Path(getattr(getattr(self.measure, "__code__", None), "co_filename", ""))
            raise blame(
                error,
                f"the metric '{self.name}'",
                file,
                f"answer: {answer.text[:80]!r}",
                "fix its plugin, or leave it out with FASTTUNE_PLUGINS=name,name",
            ) from error


def exact_section(section: str, taken: Container[str] = ()) -> Metric:
    """The metric `exact_SECTION`: how often a learned section equals its reference.

    Args:
        taken: names of other metrics.
    """

    def measure(answer: Answer) -> float | None:
        reference = answer.references.get(section)
        if reference is None or section not in answer.sections:
            return None
        return answer.sections[section].strip() == reference.strip()

    name = "exact_" + re.sub(r"[^\w.-]", "_", section)[:80]
    while name in taken:
        name += "_"
    return Metric(name, f"share whose section '{section}' equals the reference", measure, "higher")


def score(answers: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, float]:
    """The value of each metric that means something for any of the answers."""
    scores = {}
    for metric in metrics:
        amounts = metric.amounts(answers)
        if weight := sum(weight for _, weight in amounts):
            scores[metric.name] = sum(amount for amount, _ in amounts) / weight
    return scores


def vote(answers: Sequence[Answer]) -> Answer:
    """The first of the answers to one row with the most frequent response, ignoring white space
    around it (self-consistency, Wang et al., arXiv:2203.11171).

    An answer that did not end, or has no response, has no vote if another one has.
    """
    voting = [a for a in answers if a.stop == "eos" and a.response.strip()] or answers
    votes = Counter(answer.response.strip() for answer in voting)
    chosen = max(voting, key=lambda answer: votes[answer.response.strip()])  # the first of them
    return replace(chosen, samples=tuple(answer.response for answer in answers))


def as_dict(answer: Answer) -> dict[str, Any]:
    """An answer without its row, for JSON."""
    kept = {key: getattr(answer, key) for key in ("text", "sections", "stop", "tokens")}
    if answer.samples:
        kept["samples"] = list(answer.samples)
    if answer.likelihood:
        kept["likelihood"] = asdict(answer.likelihood)
    return kept
