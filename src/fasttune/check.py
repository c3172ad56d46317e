"""The contract of a template, checked on the probe rows and on rows of your own.

A check is one promise. A row that breaks a promise is not put to the later checks, which build on
it, so the first failure of a row is the one to mend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fasttune.encode import IGNORED, encode, encode_prompt
from fasttune.errors import FasttuneError
from fasttune.template import PROBE_ROWS, Row, Segment, Template

Status = Literal["ok", "info", "warning", "failure"]
Complaint = tuple[str, str]
"""A row, as "probe row 3" or "row 17", and what is wrong with it."""

SHOWN = 3


@dataclass(frozen=True)
class Result:
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
    status: Status
    message: str
    rows: list[str] = field(default_factory=list)
    hint: str = ""


def check_template(
    template: Template, tokenizer: Any = None, data: str | Path | None = None
) -> list[Result]:
    """Check a template on the probe rows, and on the rows of `data` that can be used with it.

    Without a tokenizer only what can be told from the text is checked. `data` is left unread if the
    template does not even render the probe rows.

    Raises:
        FasttuneError: `data` cannot be read, or none of its rows can be used.
    """
    probes = [(f"probe row {number}", row) for number, row in enumerate(PROBE_ROWS, 1)]
    rows: list[tuple[str, Row]] = list(probes)
    results: list[Result] = []
    if data is not None and not any(_renders(template, row, None) for row in PROBE_ROWS):
        more, results = _read(data, template)
        rows += more
    for check, severity, keep, promise, hint in TEXT + (TOKENS if tokenizer is not None else ()):
        complaints = list(_complaints(keep, template, rows, tokenizer))
        results.append(_result(check, severity, promise, complaints, hint))
        if severity == "failure":
            broken = {where for where, _ in complaints}
            rows = [(where, row) for where, row in rows if where not in broken]
        if not rows:
            return results
    results += _own_text_results(template, [place for place in probes if place in rows])
    if tokenizer is not None and template.tags:
        results.append(_tokens_per_tag(template, tokenizer))
    return results


def failed(results: Iterable[Result]) -> bool:
    """Whether a check failed; warnings do not count."""
    return any(result.status == "failure" for result in results)


def _complaints(
    keep: Keep, template: Template, rows: Iterable[tuple[str, Row]], tokenizer: Any
) -> Iterable[Complaint]:
    for where, row in rows:
        try:
            complaint = keep(template, dict(row), tokenizer)
        except FasttuneError as error:
            complaint = error.message
        except Exception as error:  # the template's own code
            complaint = _error(error)
        if complaint:
            yield where, complaint


def _result(
    check: str, severity: Status, promise: str, complaints: list[Complaint], hint: str
) -> Result:
    if not complaints:
        return Result(check, "ok", promise)
    shown = [": ".join(filter(None, complaint)) for complaint in complaints[:SHOWN]]
    if len(complaints) > SHOWN:
        shown.append(f"and {len(complaints) - SHOWN} more")
    return Result(check, severity, f"not so: {promise}", shown, hint)


def _read(data: str | Path, template: Template) -> tuple[list[tuple[str, Row]], list[Result]]:
    """The usable rows of a source, and a result about the others, which no check will see."""
    from fasttune.data import load

    loaded = load(data, template)
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


# One promise each: the complaint about a row, or "". A later one relies on those before it.


def _renders(template: Template, row: Row, tokenizer: Any) -> str:
    for suffix, this in (
        ("", row),
        (f" (without {_target_columns(template)})", _bare(template, row)),
    ):
        try:
            segments = list(template.segments(this))
        except Exception as error:  # the template's own code
            return f"{_error(error)}{suffix}"
        for s in segments:
            if not isinstance(s, Segment) or not isinstance(s.text, str):
                return f"{s!r} is no segment of text{suffix}"
    return ""


def _repeats(template: Template, row: Row, tokenizer: Any) -> str:
    first, second = list(template.segments(row)), list(template.segments(row))
    return (
        ""
        if first == second
        else _difference(*("".join(s.text for s in x) for x in (first, second)))
    )


def _learns(template: Template, row: Row, tokenizer: Any) -> str:
    with_text = [segment for segment in template.segments(row) if segment.text]
    if not any(segment.train for segment in with_text):
        return "nothing is learned"
    return "nothing is given first" if with_text[0].train else ""


def _prompts_alike(template: Template, row: Row, tokenizer: Any) -> str:
    prompt, text = template.prompt(row), template.render(row)
    if (bare := template.prompt(_bare(template, row))) != prompt:
        return f"without {_target_columns(template)} {_difference(bare, prompt)}"
    return "" if text.startswith(prompt) else f"prompt {_difference(prompt, text)}"


def _parses(template: Template, row: Row, tokenizer: Any) -> str:
    sections = template.parse("".join(s.text for s in _completion(template, row)))
    for section, column in template.targets.items():
        if section not in sections:
            return f"parse gives no '{section}'"
        if sections[section] != row.get(column, ""):
            return f"{section} {_difference(sections[section], row.get(column, ''))}"
    return ""


def _learns_all_it_writes(template: Template, row: Row, tokenizer: Any) -> str:
    unlearned = [s.text for s in _completion(template, row) if s.text and not s.train]
    return f"{unlearned[0]!r} is given after a learned segment" if unlearned else ""


def _ids_alike(template: Template, row: Row, tokenizer: Any) -> str:
    encoded = encode(template, row, tokenizer)
    trained = encoded.input_ids[: encoded.prompt_length]
    prompted = encode_prompt(template, row, tokenizer)
    return "" if trained == prompted else f"trained after {trained}, prompted with {prompted}"


def _decodes(template: Template, row: Row, tokenizer: Any) -> str:
    if not all(segment.train for segment in _completion(template, row)):
        return ""  # a token that lies over the border of a given segment would decode to more
    labels = [label for label in encode(template, row, tokenizer).labels if label != IGNORED]
    decoded = tokenizer.decode(
        labels, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    learned = "".join(s.text for s in _completion(template, row)) + tokenizer.eos_token
    return "" if decoded == learned else f"decoded {_difference(decoded, learned)}"


def _in_one_go(template: Template, row: Row, tokenizer: Any) -> str:
    apart = encode(template, row, tokenizer).input_ids[:-1]
    whole = list(tokenizer(template.render(row)).input_ids)
    if apart == whole:
        return ""
    at = _parting(apart, whole)
    seen, expected = (tokenizer.decode(ids[at : at + 1]) for ids in (whole, apart))
    return f"{seen!r} in one go, {expected!r} apart (token {at})"


Keep = Callable[[Template, Row, Any], str]
Check = tuple[str, Status, Keep, str, str]

TEXT: tuple[Check, ...] = (
    (
        "renders",
        "failure",
        _renders,
        "segments() gives segments of text, with and without the target columns",
        "read the targets with row.get(column, ''), and yield only given(...) and learn(...)",
    ),
    (
        "repeatable",
        "failure",
        _repeats,
        "the same row gives the same text twice",
        "use nothing but the row: no time, no random choice, no state",
    ),
    (
        "learns",
        "failure",
        _learns,
        "something is given first, and something is learned after it",
        "yield a given(...) with text first, then at least one learn(...) with text",
    ),
    (
        "prompt",
        "failure",
        _prompts_alike,
        "the training text begins with the prompt, and the prompt does not depend on the targets",
        "leave the target columns out of every given(...), and do not override prompt()",
    ),
    (
        "parse",
        "failure",
        _parses,
        "parse() gives the target columns back, character by character",
        "undo in parse() exactly what the learned segments add; do not strip()",
    ),
    (
        "unlearned",
        "warning",
        _learns_all_it_writes,
        "all that follows the first learned segment is learned",
        "use learn(...): the model has to write this text when it generates, and never learns to",
    ),
)

TOKENS: tuple[Check, ...] = (
    (
        "ids",
        "failure",
        _ids_alike,
        "training begins with the very ids that generation begins with",
        "do not override prompt(), and give all sections before the first learned one text",
    ),
    (
        "decode",
        "failure",
        _decodes,
        "the learned ids read as the learned text and EOS",
        "this tokenizer changes text; use one that gives back what it was given",
    ),
    (
        "one go",
        "info",
        _in_one_go,
        "prompt and completion tokenized in one go give the same ids",
        "nothing, within fasttune: it tokenizes the two apart in training and in generation alike. "
        "A program that tokenizes the whole text in one go would see other ids",
    ),
)

FIELD = "\ue000"  # a private character, which no template writes
# What looks like a marker of a format: <|tag|>, <tag>, [TAG], or a line with a # heading.
MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]|(?m:^#+ [^\n\ue000]+)")
INDENTED = re.compile(r"(?:^|\n)[ \t]+")


def _own_text_results(template: Template, probes: list[tuple[str, Row]]) -> list[Result]:
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


def _tokens_per_tag(template: Template, tokenizer: Any) -> Result:
    counts = [
        f"{tag} {len(tokenizer(tag, add_special_tokens=False).input_ids)}" for tag in template.tags
    ]
    return Result("tokens", "info", f"tokens of each tag: {', '.join(counts)}")


def _completion(template: Template, row: Row) -> list[Segment]:
    segments = list(template.segments(row))
    first = next(i for i, segment in enumerate(segments) if segment.train)
    return segments[first:]


def _bare(template: Template, row: Row) -> dict[str, str]:
    """The row as it is when prompting."""
    return {column: t for column, t in row.items() if column not in template.targets.values()}


def _target_columns(template: Template) -> str:
    return " and ".join(template.targets.values())


def _error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _difference(seen: str, expected: str) -> str:
    """Where two texts part, with a little of what stands there."""
    at = _parting(seen, expected)
    start = max(0, at - 10)
    return f"{seen[start : at + 20]!r} is not {expected[start : at + 20]!r} (character {at})"


def _parting(seen: Sequence[Any], expected: Sequence[Any]) -> int:
    pairs = enumerate(zip(seen, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(seen), len(expected)))
