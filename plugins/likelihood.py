"""Likelihood of the reference response, in units that do not depend on tokenizer or format."""

from fasttune import Answer, Metric, hookimpl


def bits_per_byte(answer: Answer) -> tuple[float, float] | None:
    likelihood = answer.likelihood
    return (likelihood.bits, likelihood.bytes) if likelihood else None


def bits_per_byte_reference(answer: Answer) -> tuple[float, float] | None:
    likelihood = answer.likelihood
    if likelihood is None or likelihood.bits_reference is None:
        return None
    return likelihood.bits_reference, likelihood.bytes


def p_eos(answer: Answer) -> float | None:
    return answer.likelihood.eos if answer.likelihood else None


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric(
            "bits_per_byte",
            "bits per UTF-8 byte of the reference response, after the model's own reasoning",
            bits_per_byte,
            "lower",
        ),
        Metric(
            "bits_per_byte_reference",
            "the same after the reference's reasoning",
            bits_per_byte_reference,
            "lower",
        ),
        Metric("p_eos", "mean probability of EOS at the reference's end", p_eos, "higher"),
    ]
