"""Do the answers stop, keep to the format, and say the right thing?"""

import re
import unicodedata
from decimal import Decimal

from fasttune import Answer, Metric, hookimpl

_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


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
    bare = re.fullmatch(_NUMBER, unicodedata.normalize("NFKC", row.get("output", "").strip()))
    if len(wanted) != 1 or (wanted[0] in asked and not bare):
        return None
    return numbers(answer.response)[-1:] == wanted


def numbers(text: str) -> list[Decimal]:
    """The numbers written in digits. Of `.` and `,` the last is the decimal sign where both occur;
    alone it groups digits where three follow it each time."""
    found = []
    for match in _NUMBER.finditer(unicodedata.normalize("NFKC", text)):
        digits = match.group()
        decimal = max(digits.rfind("."), digits.rfind(","))
        signs = set(digits) & {".", ","}
        if len(signs) == 1 and re.fullmatch(r"-?[1-9]\d{0,2}([.,]\d{3})+", digits):
            decimal = -1
        whole = re.sub("[.,]", "", digits if decimal < 0 else digits[:decimal])
        found.append(Decimal(whole if decimal < 0 else f"{whole}.{digits[decimal + 1 :]}"))
    return found


def length(answer: Answer) -> float:
    return answer.tokens


@hookimpl
def register_metrics() -> list[Metric]:
    return [
        Metric("stops", "share of answers that ended with EOS", stops, "higher"),
        Metric("format", "share of answers in which no section is empty", format_kept, "higher"),
        Metric("exact", "share of responses equal to the reference", exact, "higher"),
        Metric("numeric", "share whose last number is the reference's", numeric, "higher"),
        Metric("length", "mean tokens of an answer", length),
    ]
