"""The result of a check, and how `fasttune doctor` runs checks. `doctor.machine` lists them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from fasttune.errors import FasttuneError


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Attributes:
        status: "warning" is good to know; "failure" keeps fasttune from working.
        detail: what the check found.
        hint: what to do; may be empty.
        name: the check's; `diagnose` sets it.
    """

    status: Literal["ok", "warning", "failure"]
    detail: str
    hint: str = ""
    name: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, **asdict(self)}


Check = tuple[str, Callable[[], Result]]


def diagnose(checks: Sequence[Check]) -> Iterator[Result]:
    """Run the checks in order. An exception becomes a failure of its check.

    The output of libraries during their import is discarded.
    """
    for name, check in checks:
        output = io.StringIO()
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                result = check()
            except FasttuneError as error:
                detail = "; ".join(filter(None, (error.message, error.where)))
                result = Result("failure", detail, error.hint)
            except Exception as error:
                message = str(error).strip().partition("\n")[0]
                result = Result("failure", f"{type(error).__name__}: {message}")
        yield replace(result, name=name)
