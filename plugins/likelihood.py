"""What a reference response costs the model, in units that no tokenizer or format changes."""

from fasttune import Answer, Metric, hookimpl


def bits_per_byte(answer: Answer) -> tuple[float, float] | None:
    found = answer.likelihood
    return (found.bits, found.bytes) if found else None


def bits_per_byte_reference(answer: Answer) -> tuple[float, float] | None:
    found = answer.likelihood
    if found is None or found.bits_reference is None:
        return None
    return found.bits_reference, found.bytes


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
