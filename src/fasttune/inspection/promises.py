"""What a template promises of every row, and what to do where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fasttune.encoding.encode import IGNORED, encode, encode_prompt
from fasttune.plugins.guard import Overdue, PluginError
from fasttune.plugins.identity import difference, parting, unlike
from fasttune.plugins.template import (
    HISTORY,
    Row,
    Segment,
    Template,
    at_the_answer,
    history,
    split_turns,
    turns,
)

Severity = Literal["ok", "info", "warning", "failure"]

# One promise each: the complaint about a row, or "". A later one relies on those before it.


def renders(template: Template, row: Row, tokenizer: Any) -> str:
    for suffix, this in (
        ("", row),
        (f" (without {_target_columns(template)})", _bare(template, row)),
    ):
        try:
            template.segments(this)
        except Overdue:
            raise
        except PluginError as error:
            return told(error, suffix)
    return ""


def _repeats(template: Template, row: Row, tokenizer: Any) -> str:
    return unlike(list(template.segments(row)), list(template.segments(row)))


def _learns(template: Template, row: Row, tokenizer: Any) -> str:
    for turn in split_turns(template.segments(row)):
        with_text = [segment for segment in turn if segment.text]
        if not any(segment.train for segment in with_text):
            return "nothing is learned"
        if with_text[0].train:
            return "nothing is given first"
    return ""


def _prompts_alike(template: Template, row: Row, tokenizer: Any) -> str:
    prompt, text = template.prompt(row), template.render(row)
    if (bare := template.prompt(_bare(template, row))) != prompt:
        return f"without {_target_columns(template)} {difference(bare, prompt)}"
    return "" if text.startswith(prompt) else f"prompt {difference(prompt, text)}"


def _parses(template: Template, row: Row, tokenizer: Any) -> str:
    for turn, segments in zip(turns(row), _completions(template, row), strict=True):
        sections = template.parse("".join(s.text for s in segments))
        for section, column in template.targets.items():
            if section not in sections:
                return f"parse gives no '{section}'"
            if sections[section] != turn.get(column, ""):
                return f"{section} {difference(sections[section], turn.get(column, ''))}"
    return ""


def _learns_all_it_writes(template: Template, row: Row, tokenizer: Any) -> str:
    written = [s for segments in _completions(template, row) for s in segments]
    unlearned = [s.text for s in written if s.text and not s.train]
    return f"{unlearned[0]!r} is given after a learned segment" if unlearned else ""


def _ids_alike(template: Template, row: Row, tokenizer: Any) -> str:
    ids = encode(template, row, tokenizer).input_ids
    for start in _starts(template, row):
        encoded = encode(template, start, tokenizer)
        trained = ids[: encoded.prompt_length]
        prompted = encode_prompt(template, _bare(template, start), tokenizer)
        if trained != prompted:
            return f"trained after {trained}, prompted with {prompted}"
    return ""


def _starts(template: Template, row: Row) -> list[Row]:
    """The row as it was at the end of each of its turns."""
    said = [{c: text for c, text in turn.items() if c != HISTORY} for turn in turns(row)]
    return [{**turn, **history(said[:at])} for at, turn in enumerate(said)]


def _decodes(template: Template, row: Row, tokenizer: Any) -> str:
    written = _completions(template, row)
    if not all(segment.train for segments in written for segment in segments):
        return ""  # a token that lies over the border of a given segment would decode to more
    labels = [label for label in encode(template, row, tokenizer).labels if label != IGNORED]
    decoded = tokenizer.decode(
        labels, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    texts = ["".join(s.text for s in segments) + tokenizer.eos_token for segments in written]
    learned = "".join(texts)
    return "" if decoded == learned else f"decoded {difference(decoded, learned)}"


def _in_one_go(template: Template, row: Row, tokenizer: Any) -> str:
    apart = encode(template, row, tokenizer).input_ids[:-1]
    texts = ["".join(s.text for s in turn) for turn in split_turns(template.segments(row))]
    whole = list(tokenizer(tokenizer.eos_token.join(texts)).input_ids)
    if apart == whole:
        return ""
    at = parting(apart, whole)
    seen, expected = (tokenizer.decode(ids[at : at + 1]) for ids in (whole, apart))
    return f"{seen!r} in one go, {expected!r} apart (token {at})"


Keep = Callable[[Template, Row, Any], str]
Promise = tuple[str, Severity, Keep, str, str]

TEXT: tuple[Promise, ...] = (
    (
        "renders",
        "failure",
        renders,
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

TOKENS: tuple[Promise, ...] = (
    (
        "ids",
        "failure",
        _ids_alike,
        "up to every answer, training has the very ids that generation begins with",
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


def _completions(template: Template, row: Row) -> list[list[Segment]]:
    """The segments of each turn from its first learned one on."""
    return [at_the_answer(turn)[1] for turn in split_turns(template.segments(row))]


def _bare(template: Template, row: Row) -> dict[str, str]:
    """The row as it is when prompting."""
    return {column: t for column, t in row.items() if column not in template.targets.values()}


def _target_columns(template: Template) -> str:
    return " and ".join(template.targets.values())


def told(error: PluginError, suffix: str = "") -> str:
    """What is wrong with a template, which is named above, and where."""
    said = error.message.partition(": ")[2] + suffix
    return ", ".join(filter(None, (said, Path(error.where).name)))
