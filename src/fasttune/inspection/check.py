"""Checking a template on made-up rows and on rows of your own.

A declaration is valid by itself. What is left to check is what it does with a tokenizer and with
real text, and what the code of a computed format does. A row that fails a check is not given to the
later ones, which rely on it, so the first failure of a row is the one to fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal

from fasttune.data.check import by_ending, ending_rows
from fasttune.data.load import load_rows
from fasttune.encoding.encode import IGNORED, encode, encode_prompt
from fasttune.errors import FasttuneError
from fasttune.formats.examples import examples
from fasttune.formats.parts import Segment, split_format
from fasttune.formats.row import Row
from fasttune.formats.template import Template, at_the_answer, split_turns
from fasttune.models.tokenizer import load_tokenizer
from fasttune.plugins.discovery import load_plugin
from fasttune.plugins.registry import Plugins

Status = Literal["ok", "info", "warning", "failure"]
Complaint = tuple[str, str]
"""The name of a row, as "example 3" or "row 17", and what is wrong with it."""
SHOWN = 3


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        status: "failure" if the template must not be trained with as it is; "warning" if it
            probably does not do what was meant; "info" is for the reader to judge.
        rows: the first few rows for which it does not hold, with what was seen.
    """

    check: str
    status: Status
    message: str
    rows: list[str] = field(default_factory=list)
    hint: str = ""


@dataclass(frozen=True)
class TemplateCheck:
    """All results for one template, with the name or folder of the tokenizer's model."""

    template: str
    tokenizer: str
    passed: bool
    checks: list[CheckResult]


def check_template(
    template: Template,
    tokenizer: Any = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[CheckResult]:
    """Check a template on made-up rows, and on the rows of `data` that can be used with it.

    Without a tokenizer, only what the text alone shows is checked.
    """
    rows = {f"example {number}": row for number, row in enumerate(examples(template), 1)}
    results: list[CheckResult] = []
    if data is not None:
        loaded = load_rows(data, template, columns)
        eos = tokenizer.eos_token or "" if tokenizer is not None else ""
        usable, ended = by_ending(loaded.rows, eos)
        rows |= {f"row {loaded.rows.number(at)}": loaded.rows[at] for at in usable}
        promise = f"every row of {data} can be used ({len(usable)} can)"
        findings = [finding for finding in loaded.findings if finding.fatal]
        findings += ending_rows(loaded.rows, ended, eos)
        unusable = [("", str(finding)) for finding in findings]
        hint = "fix these rows; a field that holds a tag could forge a section"
        results.append(_result("data", "warning", promise, unusable, hint))
    for check, complaint_of in CHECKS:
        if check.needs_tokenizer and tokenizer is None:
            continue
        seen = {
            where: _complaint(complaint_of, template, row, tokenizer) for where, row in rows.items()
        }
        complaints = [(where, complaint) for where, complaint in seen.items() if complaint]
        results.append(_result(check.name, check.severity, check.promise, complaints, check.hint))
        if check.severity == "failure":
            rows = {where: row for where, row in rows.items() if not seen[where]}
        if not rows:
            return results
    results.append(_tags(template))
    if tokenizer is not None and template.tags:
        counts = [
            f"{tag} {len(tokenizer(tag, add_special_tokens=False).input_ids)}"
            for tag in template.tags
        ]
        results.append(CheckResult("tokens", "info", f"tokens of each tag: {', '.join(counts)}"))
    return results


def templates_of(name: str, plugins: Callable[[], Plugins]) -> list[Template]:
    """The templates of a plugin file, or the one of a name or a YAML file. `plugins` loads them; it
    is called unless `name` is a plugin file."""
    if not name.endswith(".py"):
        return [plugins().template(name)]
    templates = [template for template, _ in load_plugin(Path(name)).templates.values()]
    if not templates:
        raise FasttuneError(
            "the plugin provides no template", name, "add a register_templates hook"
        )
    return templates


def check_templates(
    templates: Iterable[Template],
    model: str | None = None,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[TemplateCheck]:
    """Check each template with the tokenizer of a model; see `check_template`."""
    pairs = [(template, load_tokenizer(model, template.end)) for template in templates]
    from transformers.utils import logging  # slow: after errors that need no tokenizer

    logging.set_verbosity_error()  # it warns of rows longer than the model reads
    checked = []
    for template, tokenizer in pairs:
        results = check_template(template, tokenizer, data, columns)
        name = str(tokenizer.name_or_path)
        checked.append(TemplateCheck(template.name, name, not failed(results), results))
    return checked


def failed(results: Iterable[CheckResult]) -> bool:
    """Whether a check failed; warnings do not count."""
    return any(result.status == "failure" for result in results)


def _complaint(complaint_of: ComplaintOf, template: Template, row: Row, tokenizer: Any) -> str:
    try:
        return complaint_of(template, row, tokenizer)
    except FasttuneError as error:
        message = error.message.removeprefix(f"template '{template.name}' fails: ")
        return ", ".join(filter(None, (message, error.where.partition("\n")[0])))


def _result(
    check: str, severity: Status, promise: str, complaints: Sequence[Complaint], hint: str
) -> CheckResult:
    if not complaints:
        return CheckResult(check, "ok", promise)
    shown = [": ".join(filter(None, complaint)) for complaint in complaints[:SHOWN]]
    if len(complaints) > SHOWN:
        shown.append(f"and {len(complaints) - SHOWN} more")
    return CheckResult(check, severity, f"not so: {promise}", shown, hint)


def _tags(template: Template) -> CheckResult:
    """Whether every section that the format opens has a tag that a row must not contain."""
    heads = [
        split_format(text)[0][0].strip() for part in template.parts for text in part.texts if text
    ]
    bare = [("", f"{h!r} has none") for h in heads if h and not any(t in h for t in template.tags)]
    return _result(
        "tags",
        "info",
        "every part that begins with text has a tag, so that a row cannot forge a section",
        bare,
        "name what marks a section in more_tags; a row that contains it is then reported",
    )


ComplaintOf = Callable[[Template, Row, Any], str]
CHECKS: list[tuple[_Check, ComplaintOf]] = []
"""Each relies on those before it."""


@dataclass(frozen=True)
class _Check:
    """Decorates a function that says what is wrong with a row, or ""."""

    name: str
    promise: str
    hint: str
    severity: Status = "failure"
    needs_tokenizer: bool = False

    def __call__(self, complaint_of: ComplaintOf) -> ComplaintOf:
        CHECKS.append((self, complaint_of))
        return complaint_of


@_Check(
    "renders",
    "segments() gives segments of text, with and without the target columns",
    "read the targets with row.get(column, ''), and yield Segment(name, text, train)",
)
def _renders(template: Template, row: Row, tokenizer: Any) -> str:
    template.rendered(row)
    template.opening(_asked(template, row))
    return ""


@_Check(
    "repeatable",
    "the same row gives the same text twice",
    "use nothing but the row: no time, no random choice, no state",
)
def _repeats(template: Template, row: Row, tokenizer: Any) -> str:
    first, second = (template.rendered(row) for _ in range(2))
    if first == second:
        return ""
    return _difference(*("".join(s.text for s in segments) for segments in (first, second)))


@_Check(
    "learns",
    "something is given first, and something is learned after it",
    "begin with a given part that has text, then a learned one",
)
def _learns(template: Template, row: Row, tokenizer: Any) -> str:
    for turn in split_turns(template.rendered(row)):
        with_text = [segment for segment in turn if segment.text]
        if not any(segment.train for segment in with_text):
            return "nothing is learned"
        if with_text[0].train:
            return "nothing is given first"
    return ""


@_Check(
    "prompt",
    "the prompt does not depend on the targets",
    "leave the target columns out of what is given",
)
def _prompts_alike(template: Template, row: Row, tokenizer: Any) -> str:
    prompt = template.prompt(row)
    asked = template.prompt(_asked(template, row))
    return "" if asked == prompt else f"without the targets {_difference(asked, prompt)}"


@_Check(
    "parse",
    "parse gives the target columns back, character by character",
    "undo in parse() exactly what the learned segments add; do not strip()",
)
def _parses(template: Template, row: Row, tokenizer: Any) -> str:
    for number, segments in enumerate(_completions(template, row)):
        turn = row.turn(number)
        sections = template.parsed("".join(s.text for s in segments))
        for section, column in template.targets.items():
            if section not in sections:
                return f"parse gives no '{section}'"
            if sections[section] != turn.get(column, ""):
                return f"{section} {_difference(sections[section], turn.get(column, ''))}"
    return ""


@_Check(
    "unlearned",
    "everything after the first learned segment is learned",
    "learn it: the model has to write this text when it generates",
    severity="warning",
)
def _learns_all_it_writes(template: Template, row: Row, tokenizer: Any) -> str:
    written = [s for segments in _completions(template, row) for s in segments]
    unlearned = [s.text for s in written if s.text and not s.train]
    return f"{unlearned[0]!r} is given after a learned segment" if unlearned else ""


@_Check(
    "border",
    "the prompt does not end with a space",
    'move the space into the learned part, as learn("response", " {output}"): most tokenizers '
    "put a space at the start of a word, so a model rarely saw one before a word",
    severity="warning",
)
def _no_white_space_at_the_border(template: Template, row: Row, tokenizer: Any) -> str:
    prompt = template.prompt(row)
    return f"it ends with {prompt[-10:]!r}" if prompt.endswith(" ") else ""


@_Check(
    "ids",
    "training has the same ids before every answer as generation starts from",
    "give all sections before the first learned one text",
    needs_tokenizer=True,
)
def _ids_alike(template: Template, row: Row, tokenizer: Any) -> str:
    ids = encode(template, row, tokenizer).input_ids
    for at in range(len(row.turns)):
        until = Row(row.turns[: at + 1], row.system, row.columns, row.language)
        trained = ids[: encode(template, until, tokenizer).prompt_length]
        prompted = encode_prompt(template, _asked(template, until), tokenizer)
        if trained != prompted:
            return f"trained after {trained}, prompted with {prompted}"
    return ""


@_Check(
    "decode",
    "the learned ids decode to the learned text and EOS",
    "this tokenizer changes text; use one that gives back what it was given",
    needs_tokenizer=True,
)
def _decodes(template: Template, row: Row, tokenizer: Any) -> str:
    written = _completions(template, row)
    if not all(segment.train for segments in written for segment in segments):
        return ""  # a token that lies over the border of a given segment would decode to more
    labels = [label for label in encode(template, row, tokenizer).labels if label != IGNORED]
    decoded = tokenizer.decode(
        labels, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    learned = "".join("".join(s.text for s in each) + tokenizer.eos_token for each in written)
    return "" if decoded == learned else f"decoded {_difference(decoded, learned)}"


@_Check(
    "ends",
    "the format does not begin with BOS, and learns no EOS of its own",
    "leave it out: fasttune adds the end and trains it, and the tokenizer adds BOS",
    needs_tokenizer=True,
)
def _adds_no_ends(template: Template, row: Row, tokenizer: Any) -> str:
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    if bos and template.render(row).startswith(bos):
        return f"it begins with BOS ({bos})"
    learned = ("".join(s.text for s in each if s.train) for each in _completions(template, row))
    return f"it learns EOS ({eos})" if any(eos in text for text in learned) else ""


@_Check(
    "one go",
    "prompt and completion tokenized in one go give the same ids",
    "nothing, within fasttune: it tokenizes the two apart in training and in generation alike. "
    "A program that tokenizes the whole text in one go would see other ids",
    severity="info",
    needs_tokenizer=True,
)
def _in_one_go(template: Template, row: Row, tokenizer: Any) -> str:
    apart = encode(template, row, tokenizer).input_ids[:-1]
    texts = ["".join(s.text for s in turn) for turn in split_turns(template.rendered(row))]
    whole = list(tokenizer(tokenizer.eos_token.join(texts)).input_ids)
    if apart == whole:
        return ""
    at = len(commonprefix((apart, whole)))
    seen, expected = (tokenizer.decode(ids[at : at + 1]) for ids in (whole, apart))
    return f"{seen!r} in one go, {expected!r} apart (token {at})"


def _completions(template: Template, row: Row) -> list[list[Segment]]:
    """The segments of each turn from its first learned one on."""
    return [at_the_answer(turn)[1] for turn in split_turns(template.rendered(row))]


def _asked(template: Template, row: Row) -> Row:
    """The row as it is when prompting."""
    return row.without([*template.targets.values()])


def _difference(seen: str, expected: str) -> str:
    """Where two texts part, with a little of what is there."""
    at = len(commonprefix((seen, expected)))
    start = max(0, at - 10)
    return f"{seen[start : at + 20]!r} is not {expected[start : at + 20]!r} (character {at})"
