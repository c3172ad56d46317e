"""Do the answers stop, keep to the format, and say the right thing?"""

import re
from decimal import Decimal

from fasttune import Answer, Metric, hookimpl

# A hyphen between numbers or letters is no sign of a number; a point may begin one.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:[.,]\d+)*|(?<!\w)\.\d+)")
_GROUPED = re.compile(r"-?[1-9]\d{0,2}(?:(?:,\d{3})+|(?:\.\d{3})+)")
_ASCII = str.maketrans("，．－−", ",.--")


def stops(answer: Answer) -> float:
    return answer.stop == "eos"


def format_kept(answer: Answer) -> float:
    return all(text.strip() for text in answer.sections.values())


def exact(answer: Answer) -> float | None:
    reference = answer.row.get("output", "").strip()
    return answer.response.strip() == reference if reference else None


def numeric(answer: Answer) -> float | None:
    """Whether the response's last number is the reference's. A row counts where the reference is a
    number, or holds exactly one and the question does not hold it already."""
    row = answer.row
    wanted = numbers(row.get("output", ""))
    asked = numbers(f"{row.get('instruction', '')} {row.get('input', '')}")
    bare = _NUMBER.fullmatch(row.get("output", "").strip().translate(_ASCII))
    if len(wanted) != 1 or (wanted[0] in asked and not bare):
        return None
    return numbers(answer.response)[-1:] == wanted


def numbers(text: str) -> list[Decimal]:
    """The numbers written in digits, of any script.

    Of `.` and `,` the last is the decimal sign where both occur. One kind alone groups digits
    where three follow it each time, is the decimal sign where it occurs once, and otherwise keeps
    numbers apart, as in a date.
    """
    found: list[str] = []
    for match in _NUMBER.finditer(text.translate(_ASCII)):
        digits = match.group()
        last = max(digits.rfind("."), digits.rfind(","))
        separators = digits.count(",") + digits.count(".")
        if last < 0 or _GROUPED.fullmatch(digits):
            found.append(re.sub("[.,]", "", digits))
        elif separators > 1 and digits.count(digits[last]) == separators:
            found += re.split("[.,]", digits)
        else:
            found.append(f"{re.sub('[.,]', '', digits[:last])}.{digits[last + 1 :]}")
    return [Decimal(number) for number in found]


def length(answer: Answer) -> float:
    return answer.tokens


def agreement(answer: Answer) -> float | None:
    return answer.agreeing / len(answer.samples) if answer.samples else None


def exact_samples(answer: Answer) -> float | None:
    reference = answer.row.get("output", "").strip()
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
