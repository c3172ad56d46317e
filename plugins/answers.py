"""Metrics of single answers: whether they stop, keep the format and match the reference."""

import re
from decimal import Decimal

from fasttune import Answer, Metric, hookimpl

# A hyphen after a number or a letter is not a minus sign; a number may begin with a point.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:[.,]\d+)*|(?<!\w)\.\d+)")
_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:(?:,\d{3})+|(?:\.\d{3})+)")
_ASCII = str.maketrans("，．－−", ",.--")


def stops(answer: Answer) -> float:
    return answer.stop == "eos"


def format_kept(answer: Answer) -> float:
    return all(text.strip() for text in answer.sections.values())


def exact(answer: Answer) -> float | None:
    reference = answer.reference.strip()
    return answer.response.strip() == reference if reference else None


def numeric(answer: Answer) -> float | None:
    """Whether the response's last number equals the reference's number.

    It is None unless the reference is a number, or contains exactly one that is not in the
    question.
    """
    row = answer.row
    wanted = numbers(answer.reference)
    asked = numbers(f"{row.get('instruction', '')} {row.get('input', '')}")
    bare = _NUMBER.fullmatch(answer.reference.strip().translate(_ASCII))
    if len(wanted) != 1 or (wanted[0] in asked and not bare):
        return None
    return numbers(answer.response)[-1:] == wanted


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in digits of any script.

    If a number contains `.` and `,`, the last one is the decimal sign. If it contains one of them,
    that groups digits if three follow it each time, is the decimal sign if it occurs once, and
    otherwise separates numbers, as in a date.
    """
    texts: list[str] = []
    for match in _NUMBER.finditer(text.translate(_ASCII)):
        digits = match.group()
        last = max(digits.rfind("."), digits.rfind(","))
        separators = digits.count(",") + digits.count(".")
        if last < 0 or _GROUPED.fullmatch(digits):
            texts.append(re.sub("[.,]", "", digits))
        elif separators > 1 and digits.count(digits[last]) == separators:
            texts += re.split("[.,]", digits)
        else:
            texts.append(f"{re.sub('[.,]', '', digits[:last])}.{digits[last + 1 :]}")
    return [Decimal(text) for text in texts]


def length(answer: Answer) -> float:
    return answer.tokens


def agreement(answer: Answer) -> float | None:
    return answer.agreeing / len(answer.samples) if answer.samples else None


def exact_samples(answer: Answer) -> float | None:
    reference = answer.reference.strip()
    samples = [sample.strip() for sample in answer.samples]
    return samples.count(reference) / len(samples) if samples and reference else None


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric("stops", "share of answers that ended with EOS", stops, "higher"),
        Metric("format", "share of answers in which no section is empty", format_kept, "higher"),
        Metric("exact", "share of responses equal to the reference", exact, "higher"),
        Metric("numeric", "share whose last number is the reference's", numeric, "higher"),
        Metric("agreement", "share of samples that give the response of the vote", agreement),
        Metric("exact_samples", "share of samples equal to the reference", exact_samples, "higher"),
        Metric("length", "mean tokens of an answer", length),
    ]
