"""Is this machine ready? What a check says, and how checks are run: `doctor.machine` lists them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from fasttune.errors import FasttuneError

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        status: "warning" is something to know; "failure" keeps fasttune from working.
        detail: what was found.
        hint: what to do; empty where nothing has to be done.
    """

    status: Status
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The result of a named check."""

    name: str
    status: Status
    detail: str
    hint: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Check = tuple[str, Callable[[], Result]]


def diagnose(checks: Sequence[Check]) -> Iterator[Diagnosis]:
    """Run checks one after the other; one that crashes is a failure of its own and ends nothing.

    What libraries print while they are imported is swallowed.
    """
    for name, check in checks:
        noise = io.StringIO()
        with (
            contextlib.redirect_stdout(noise),
            contextlib.redirect_stderr(noise),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                result = check()
            except FasttuneError as error:
                detail = "; ".join(part for part in (error.message, error.where) if part)
                result = Result("failure", detail, error.hint)
            except Exception as error:
                what = str(error).strip().partition("\n")[0]
                result = Result("failure", f"{type(error).__name__}: {what}")
        yield Diagnosis(name, result.status, result.detail, result.hint)
