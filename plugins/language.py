"""Whether the answer is in the question's language."""

from fasttune import Answer, Metric, detect_language, hookimpl


def language_kept(answer: Answer) -> float | None:
    question = detect_language(answer.row["instruction"])
    spoken = detect_language(answer.readable)
    return spoken == question if question and spoken else None


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric("language", "share of answers in the question's language", language_kept, "higher")
    ]
