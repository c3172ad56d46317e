"""Metrics of repetition, over the whole completion."""

from collections.abc import Callable

from fasttune import Answer, Metric, hookimpl, longest_repeat, split_words


def loops(answer: Answer) -> float:
    return answer.ending == "loop"


def repeated_words(answer: Answer) -> float:
    repeat = longest_repeat(answer.text)
    return repeat.words if repeat else 0


def distinct(n: int) -> Callable[[Answer], tuple[float, float] | None]:
    """The number of different n-grams and of all n-grams of an answer (Li et al., arXiv:1510.03055,
    who count over all answers together)."""

    def measure(answer: Answer) -> tuple[float, float] | None:
        words = [word.text for word in split_words(answer.text)]
        ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
        return (len(set(ngrams)), len(ngrams)) if ngrams else None

    return measure


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric("loops", "share of answers that loop until the token limit", loops, "lower"),
        Metric(
            "repeated_words",
            "mean words of the longest stretch in which a phrase follows on itself",
            repeated_words,
            "lower",
        ),
        *(
            Metric(f"distinct_{n}", f"different {n}-grams over all {n}-grams", distinct(n))
            for n in (1, 2, 3)
        ),
    ]
