"""What a person wants to know about their rows before training on them."""

from __future__ import annotations

import math
import statistics
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fasttune.config import RunConfig
from fasttune.data.check import by_ending, ending_rows
from fasttune.data.divide import Divided, load_divided, with_template
from fasttune.data.finding import Finding
from fasttune.data.load import Loaded
from fasttune.data.rows import ChosenRows
from fasttune.encoding.encode import Encoded, encode_many
from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.inspection.near import NEAR_ROWS, Near, can_count, near_duplicates
from fasttune.models.base import read_base
from fasttune.models.tokenizer import load_tokenizer, resolve_model
from fasttune.plugins.registry import Plugins

BINS = 12
"""At most so many bars in the histogram: what fits on a screen with everything else."""


@dataclass(frozen=True)
class Spread:
    """Lengths in four figures; p95 is the smallest value that 95% of the values do not exceed."""

    min: int
    median: float
    p95: int
    max: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread:
        """The four figures of a non-empty sequence."""
        ordered = sorted(values)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        return cls(ordered[0], statistics.median(ordered), p95, ordered[-1])


@dataclass(frozen=True)
class Column:
    """How many rows have text in a column, and its characters."""

    rows: int
    characters: Spread


@dataclass(frozen=True)
class Bin:
    """Rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class TokenFigures:
    """The rows as a template and a tokenizer encode them, EOS included. `overlong` rows have more
    than `max_length` tokens."""

    total: int
    trained_share: float
    per_row: Spread
    histogram: list[Bin]
    max_length: int
    overlong: int


@dataclass(frozen=True)
class Survey:
    """Everything `fasttune data` shows; see also `Loaded`.

    Attributes:
        languages: rows by their `language` column; empty if no row has one.
        scripts: rows in which a script occurs, so a Japanese row counts for Han and for Kana.
        exchanges: of a row, a question and its answer each; None where every row has one.
        first_only: rows of which the first exchange was taken alone.
        eval_source: where the held-out rows are from; "" for `eval_fraction` of these rows.
        near: rows that nearly repeat others; None where they were not counted.
    """

    source: str
    template: str
    tokenizer: str
    good_rows: int
    bad_rows: int
    warnings: int
    languages: dict[str, int]
    scripts: dict[str, int]
    forms: dict[str, int]
    exchanges: Spread | None
    first_only: int
    proposed: dict[str, str]
    unread: dict[str, int]
    columns: dict[str, Column]
    tokens: TokenFigures
    eval_fraction: float
    eval_source: str
    train_rows: int
    eval_rows: int
    problems: list[Finding]
    notes: list[str]
    near: Near | None = None

    def require_clean(self) -> None:
        """Refuse rows that a run would refuse."""
        if self.bad_rows:
            first = next(finding for finding in self.problems if finding.fatal)
            raise FasttuneError(
                f"{self.bad_rows} of {self.good_rows + self.bad_rows} rows cannot be used",
                f"{self.source}, the first: {first}",
                "fix these rows, or skip them in a run with data.skip_bad_rows=true",
            )


def survey_run(config: RunConfig, plugins: Plugins, near: bool | None = None) -> Survey:
    """Survey the rows of a run.

    Args:
        near: count near-duplicates; by default if datasketch is installed and the rows are few.
    """
    config = with_template(config)
    template = plugins.template(config.template).with_system(config.system)
    divided = load_divided(config.data, template)
    tokenizer = load_tokenizer(config.model.name, template.end)
    base = read_base(resolve_model(config.model.name))
    limit = min(config.model.max_length, (base and base.positions) or math.inf)
    result = survey(divided, template, tokenizer, int(limit), config.data.eval_fraction)
    if near is None:
        near = result.good_rows <= NEAR_ROWS and can_count()
    return replace(result, near=near_duplicates(divided.sources[0])) if near else result


def survey(
    divided: Divided, template: Template, tokenizer: Any, max_length: int, eval_fraction: float
) -> Survey:
    """Take all figures of the first source of a run's rows."""
    loaded, *held_out = divided.sources
    eos = tokenizer.eos_token or ""
    usable, bad = by_ending(loaded.rows, eos)
    ended = ending_rows(loaded.rows, bad, eos)
    findings = [*loaded.findings, *ended, *_left_out(loaded, template)]
    findings.sort(key=lambda finding: (finding.source, finding.row))
    if not usable:
        raise FasttuneError("no row can be used", f"{loaded.source}\n{ended[0]}", "fix these rows")
    rows = ChosenRows(loaded.rows, usable)
    exchanges = array("q", (len(row.turns) for row in rows))
    return Survey(
        source=loaded.source,
        template=template.name,
        tokenizer=str(tokenizer.name_or_path),
        good_rows=len(rows),
        bad_rows=loaded.bad_rows + len(bad),
        warnings=sum(not finding.fatal for finding in findings),
        languages=_ranked(row["language"] for row in rows if row.get("language")),
        scripts=_ranked(s for row in rows for s in scripts("".join(t for _, t in row.texts()))),
        forms=dict(loaded.forms),
        exchanges=Spread.of(exchanges) if max(exchanges) > 1 else None,
        first_only=loaded.cut,
        proposed=dict(loaded.proposed),
        unread=dict(loaded.unread),
        columns=_columns(rows),
        tokens=_tokens(encode_many(template, rows, tokenizer), max_length),
        eval_fraction=eval_fraction,
        eval_source=held_out[0].source if held_out else "",
        train_rows=len(by_ending(divided.train, eos)[0]),
        eval_rows=len(by_ending(divided.eval, eos)[0]),
        problems=findings,
        notes=divided.notes(eval_fraction),
    )


def _left_out(loaded: Loaded, template: Template) -> Iterator[Finding]:
    """A warning for each row whose input of one character is not in its prompt: the format wants
    two."""
    for at, row in enumerate(loaded.rows):
        if len(row.get("input", "")) != 1:
            continue
        if template.opening(row.with_turn({"input": ""})) == template.opening(row):
            what = "has one character, and the template leaves that out of the prompt"
            yield Finding(loaded.rows.number(at), "input", what, False, loaded.rows.origin(at))


def histogram(values: Sequence[int]) -> list[Bin]:
    """Equal bins of a round width that cover a non-empty sequence, empty ones between included."""
    low, high = min(values), max(values)
    width = next(
        step
        for power in range(20)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if high // step - low // step < BINS
    )
    counts = Counter(value // width for value in values)
    return [
        Bin(index * width, (index + 1) * width - 1, counts[index])
        for index in range(low // width, high // width + 1)
    ]


def scripts(text: str) -> set[str]:
    """The scripts of a text's letters, by the characters' names: Latin, Han, Kana, Hangul, ..."""
    return {script for char in set(text) if (script := _script(char))}


@cache
def _script(char: str) -> str:
    char = unicodedata.normalize("NFKC", char)[0]  # a full-width Latin letter is Latin
    if not unicodedata.category(char).startswith("L"):
        return ""
    word = unicodedata.name(char, "unnamed").split()[0]
    for script, words in (
        ("Han", ("CJK", "IDEOGRAPHIC")),
        ("Kana", ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")),
        ("", ("MODIFIER", "FEMININE", "MASCULINE")),
    ):
        if word in words:
            return script
    return word.title()


def _columns(rows: Iterable[Row]) -> dict[str, Column]:
    lengths: dict[str, array[int]] = {}
    for row in rows:
        sizes: Counter[str] = Counter()
        for name, text in row.texts():
            sizes[name] += len(text)
        for name, size in sizes.items():
            lengths.setdefault(name, array("q")).append(size)
    return {
        name: Column(sum(length > 0 for length in column), Spread.of(column))
        for name, column in lengths.items()
    }


def _tokens(rows: Iterable[Encoded], max_length: int) -> TokenFigures:
    lengths, trained = array("q"), 0
    for row in rows:
        lengths.append(len(row))
        trained += row.trained
    return TokenFigures(
        total=sum(lengths),
        trained_share=trained / sum(lengths),
        per_row=Spread.of(lengths),
        histogram=histogram(lengths),
        max_length=max_length,
        overlong=sum(length > max_length for length in lengths),
    )


def _ranked(things: Any) -> dict[str, int]:
    return dict(Counter(things).most_common())
