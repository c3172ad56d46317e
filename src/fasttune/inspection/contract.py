"""The contract of a template, checked on the probe rows and on rows of your own.

A check is one promise. A row that breaks a promise is not put to the later checks, which build on
it, so the first failure of a row is the one to mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError
from fasttune.inspection.promises import TEXT, TOKENS, Keep, Severity, renders, told
from fasttune.plugins.guard import Overdue, PluginError, described, watched
from fasttune.plugins.identity import PROBE_ROWS, probe_rows
from fasttune.plugins.template import Row, Segment, Template

Complaint = tuple[str, str]
"""A row, as "probe row 3" or "row 17", and what is wrong with it."""

SHOWN = 3


@dataclass(frozen=True)
class Checked:
    """What came of one check.

    Attributes:
        check: its short name.
        status: "failure" where the template must not be trained with as it is; "warning" where it
            probably does not do what was meant; "info" is for the reader to judge.
        message: what is promised, after "not so: " where that does not hold; or just figures.
        rows: the first few rows that break the promise, with what was seen.
        hint: what to do.
    """

    check: str
    status: Severity
    message: str
    rows: list[str] = field(default_factory=list)
    hint: str = ""


def check_template(
    template: Template,
    tokenizer: Any = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Checked]:
    """Check a template on the probe rows, and on the rows of `data` that can be used with it.

    Without a tokenizer only what can be told from the text is checked. `data` is left unread if the
    template does not even render the probe rows.

    Args:
        columns: our column -> theirs, of `data`.

    Raises:
        FasttuneError: `data` cannot be read, none of its rows can be used, or the template does not
            come to an end.
    """
    probes = [(f"probe row {number}", row) for number, row in enumerate(probe_rows(template), 1)]
    rows: list[tuple[str, Row]] = list(probes)
    results: list[Checked] = []
    if data is not None and not any(renders(template, row, None) for row in PROBE_ROWS):
        more, results = _read(data, template, columns)
        rows += more
    for check, severity, keep, promise, hint in TEXT + (TOKENS if tokenizer is not None else ()):
        with watched():
            complaints = list(_complaints(keep, template, rows, tokenizer))
        results.append(_result(check, severity, promise, complaints, hint))
        if severity == "failure":
            broken = {where for where, _ in complaints}
            rows = [(where, row) for where, row in rows if where not in broken]
        if not rows:
            return results
    single = [place for place in probes[: len(PROBE_ROWS)] if place in rows]
    results += _own_text_results(template, single)
    if tokenizer is not None and template.tags:
        results.append(_tokens_per_tag(template, tokenizer))
    return results


def failed(results: Iterable[Checked]) -> bool:
    """Whether a check failed; warnings do not count."""
    return any(result.status == "failure" for result in results)


def _complaints(
    keep: Keep, template: Template, rows: Iterable[tuple[str, Row]], tokenizer: Any
) -> Iterable[Complaint]:
    for where, row in rows:
        try:
            complaint = keep(template, dict(row), tokenizer)
        except Overdue:  # it would be so for every row
            raise
        except PluginError as error:
            complaint = told(error)
        except FasttuneError as error:
            complaint = error.message
        except Exception as error:  # an attribute of the template's own
            complaint = described(error)
        if complaint:
            yield where, complaint


def _result(
    check: str, severity: Severity, promise: str, complaints: list[Complaint], hint: str
) -> Checked:
    if not complaints:
        return Checked(check, "ok", promise)
    shown = [": ".join(filter(None, complaint)) for complaint in complaints[:SHOWN]]
    if len(complaints) > SHOWN:
        shown.append(f"and {len(complaints) - SHOWN} more")
    return Checked(check, severity, f"not so: {promise}", shown, hint)


def _read(
    data: str | Path, template: Template, columns: Mapping[str, str] | None
) -> tuple[list[tuple[str, Row]], list[Checked]]:
    """The usable rows of a source, and a result about the others, which no check will see."""
    from fasttune.data.load import load

    loaded = load(data, template, columns)
    complaints = [("", str(finding)) for finding in loaded.findings if finding.fatal]
    crashed = any(f.message.startswith("template ") for f in loaded.findings if f.fatal)
    result = _result(
        "data",
        "failure" if crashed else "warning",
        f"every row of {data} can be used ({len(loaded.rows)} can)",
        complaints,
        "put the rows right; a field that holds a tag could forge a section",
    )
    return [
        (f"row {number}", row) for number, row in zip(loaded.numbers, loaded.rows, strict=True)
    ], [result]


FIELD = "\ue000"  # a private character, which no template writes
# What looks like a marker of a format: <|tag|>, <tag>, [TAG], or a line with a # heading.
MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|(?m:^#+ [^\n\ue000]+)")
INDENTED = re.compile(r"(?:^|\n)[ \t]+")


def _own_text_results(template: Template, probes: list[tuple[str, Row]]) -> list[Checked]:
    """What the template's own text is checked for; it takes rows whose columns are known."""
    own = {where: _own_segments(template, row) for where, row in probes}
    texts = ["".join(segment.text for segment in segments) for segments in own.values()]
    indented = []
    for where, segments in own.items():
        text = "".join(FIELD if segment.train else segment.text for segment in segments)
        if match := INDENTED.search(text):
            after = re.sub(f"{FIELD}+", "…", text[match.end() :])[:20]
            indented.append((where, f"{match.group()!r} before {after!r}"))
    unused = [
        ("", f"{tag} is in no probe row")
        for tag in template.tags
        if not any(tag in text for text in texts)
    ]
    markers = dict.fromkeys(marker for text in texts for marker in MARKER.findall(text))
    undeclared = [
        ("", f"{marker} is not listed")
        for marker in markers
        if not any(tag in marker or marker in tag for tag in template.tags)
    ]
    return [
        _result(
            "indentation",
            "warning",
            "given lines begin with text, not with white space of the template's own",
            indented,
            "if it leaked from a triple-quoted string: join the lines with \\n instead",
        ),
        _result(
            "tags",
            "warning",
            "`tags` lists the markers of the format",
            unused + undeclared,
            "list exactly what marks a section: a row that holds a tag in a field is then reported",
        ),
    ]


def _own_segments(template: Template, row: Row) -> list[Segment]:
    """The segments of a row without what came from its fields, which FIELD stands for."""
    masked = {c: text if c == "language" else FIELD * len(text) for c, text in row.items()}
    return list(template.segments(masked))


def _tokens_per_tag(template: Template, tokenizer: Any) -> Checked:
    counts = [
        f"{tag} {len(tokenizer(tag, add_special_tokens=False).input_ids)}" for tag in template.tags
    ]
    return Checked("tokens", "info", f"tokens of each tag: {', '.join(counts)}")
