"""What is measured on generated answers: do they stop, keep to the format, and say the right
thing?"""

from collections.abc import Sequence

from fasttune import Answer, Metric, hookimpl


def stops(answers: Sequence[Answer]) -> float:
    return sum(answer.stop == "eos" for answer in answers) / len(answers)


def format_kept(answers: Sequence[Answer]) -> float:
    kept = (all(text.strip() for text in answer.sections.values()) for answer in answers)
    return sum(kept) / len(answers)


def exact(answers: Sequence[Answer]) -> float:
    hits = (a.sections["response"].strip() == a.row.get("output", "").strip() for a in answers)
    return sum(hits) / len(answers)


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric("stops", "share of answers that ended with EOS", stops),
        Metric("format", "share of answers in which no section is empty", format_kept),
        Metric("exact", "share of responses equal to the reference", exact),
    ]
