"""The answers in a comparison's report: a block for every held-out row, a card for every arm."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence

from fasttune.comparison.charts import label_html
from fasttune.comparison.result import Arm, Comparison
from fasttune.plugins.metric import Answer, Metric
from fasttune.plugins.template import Row
from fasttune.text.languages import detect_language
from fasttune.text.repetition import Repeat, longest_repeat

MARKED = 6
"""The least words of a repeated stretch that is marked."""

_BEGINNING = 100
_QUESTION = ("system", "instruction", "input")
_REFERENCE = ("reasoning", "output")

Span = tuple[str, int, int]


def answers_html(comparison: Comparison) -> str:
    """The section of all answers with its controls, which only the page's script shows."""
    exact = next((metric for metric in comparison.metrics if metric.name == "exact"), None)
    count = max((len(arm.answers) for arm in comparison.arms), default=0)
    rows = "\n".join(_row(comparison, place, exact) for place in range(count))
    return (
        f'<section id="answers"><h2>Answers</h2>{_controls(comparison, count)}{_legend(exact)}\n'
        f"{rows}</section>"
    )


def _controls(comparison: Comparison, count: int) -> str:
    every = list(range(len(comparison.arms)))
    seeds = list(dict.fromkeys(arm.seed for arm in comparison.arms if arm.tuned))
    parts = [
        '<label>Search <input type="search" id="search" autocomplete="off"></label>',
    ]
    if any(len(comparison.arms_of(label)) > 1 for label in comparison.labels):
        options = [(f"seed {seed}", _with_seed(comparison, seed)) for seed in seeds]
        options.append(("all seeds", every))
        listed = "".join(f'<option value="{_join(arms)}">{name}</option>' for name, arms in options)
        parts.append(f'<label>Answers of <select id="seed">{listed}</select></label>')
    if bases := _bases(comparison):
        parts.append(
            f'<label><input type="checkbox" id="base" value="{_join(bases)}" checked> '
            "untuned base</label>"
        )
    parts += [
        '<label><input type="checkbox" id="differ"> only rows where formats differ in how they '
        "stop or in being exact</label>",
        '<label><input type="checkbox" id="loops"> only loops</label>',
        f'<output id="count">{count} rows</output>',
    ]
    return f'<div class="controls" role="search" hidden>{" ".join(parts)}</div>'


def _with_seed(comparison: Comparison, seed: int | None) -> list[int]:
    """The places of the arms of a seed; of a label that does not have it, that of its first."""
    chosen = []
    for label in comparison.labels:
        group = [place for place, arm in enumerate(comparison.arms) if arm.label == label]
        chosen.append(
            next((place for place in group if comparison.arms[place].seed == seed), group[0])
        )
    return chosen


def _bases(comparison: Comparison) -> list[int]:
    """The places of the untuned arms, where there are others besides them."""
    bases = [place for place, arm in enumerate(comparison.arms) if not arm.tuned]
    return bases if len(bases) < len(comparison.arms) else []


def _join(places: Sequence[int]) -> str:
    return " ".join(map(str, places))


def _legend(exact: Metric | None) -> str:
    right = (
        '<span class="badge yes">✓</span> <span class="badge no">✗</span> equal to the '
        "reference or not. "
        if exact
        else ""
    )
    return (
        '<p class="dim">How an answer ended: <span class="badge eos">eos</span> the model ended it '
        'itself, <span class="badge length">length</span> it ran out of tokens, '
        '<span class="badge loop">loop</span> it did so while it repeated itself. '
        f"{right}<mark>Marked</mark>: the longest stretch in which a phrase follows on itself, "
        f"from {MARKED} words; in scripts without spaces every sign counts as a word.</p>"
    )


def _row(comparison: Comparison, place: int, exact: Metric | None) -> str:
    row = comparison.arms[0].answers[place].row
    marks = []
    for label in comparison.labels:
        group = [(at, arm) for at, arm in enumerate(comparison.arms) if arm.label == label]
        base = " data-base" if {at for at, _ in group} <= {*_bases(comparison)} else ""
        found = "".join(
            f'<span class="badge {_stop(arm.answers[place])}" data-arms="{at}" '
            f'title="{html.escape(_arm(arm))}">{html.escape(arm.answers[place].ending)}'
            f"{_right(arm.answers[place], exact)}</span>"
            for at, arm in group
        )
        marks.append(
            f'<span class="marks" data-arms="{_join([at for at, _ in group])}"{base}>'
            f"{label_html(comparison, label)} {found}</span>"
        )
    number = place + 1
    cards = "\n".join(
        _card(comparison, at, arm.answers[place], exact) for at, arm in enumerate(comparison.arms)
    )
    beginning = " ".join(row.get("instruction", "").split())
    if len(beginning) > _BEGINNING:
        beginning = beginning[:_BEGINNING] + "…"
    return (
        f'<details class="row" id="row-{number}"><summary><span class="number">{number}</span> '
        f'<span class="beginning" dir="auto"{_lang(row.get("instruction", ""))}>'
        f"{html.escape(beginning)}</span> "
        f'<span class="all-marks">{" ".join(marks)}</span></summary>'
        f'<div class="asked">{"".join(_columns(row, number))}</div>'
        f'<div class="cards">{cards}</div></details>'
    )


def _columns(row: Row, number: int) -> Iterator[str]:
    """The columns of a row: the question, the reference, and whatever else it has."""
    others = [name for name in row if name not in _QUESTION + _REFERENCE]
    for heading, names in (
        ("Question", _QUESTION),
        ("Reference", _REFERENCE),
        ("Other columns", others),
    ):
        having = [name for name in names if str(row.get(name, "")).strip()]
        if having:
            fields = "".join(
                f"<div><dt>{html.escape(name)}</dt><dd>{_text(str(row[name]))}</dd></div>"
                for name in having
            )
            yield f"<div><h3>{heading}</h3><dl>{fields}</dl></div>"
    yield f'<p class="link"><a href="#row-{number}">link to row {number}</a></p>'


def _card(comparison: Comparison, at: int, answer: Answer, exact: Metric | None) -> str:
    arm = comparison.arms[at]
    seed = f" <small>seed {arm.seed}</small>" if arm.tuned else ""
    return (
        f'<article class="card" data-arms="{at}"><h3>{label_html(comparison, arm.label)}{seed}</h3>'
        f'<p class="facts">{_facts(answer, exact)}</p>{_completion(answer)}</article>'
    )


def _facts(answer: Answer, exact: Metric | None) -> str:
    parts = [f'<span class="badge {_stop(answer)}">{html.escape(answer.ending)}</span>']
    if right := _right(answer, exact):
        word, name = ("exact", "yes") if "✓" in right else ("not exact", "no")
        parts.append(f'<span class="badge {name}">{word}</span>')
    spoken = detect_language(answer.readable)
    if spoken:
        parts.append(f'<span class="badge" title="detected language">{spoken}</span>')
    facts = [f"{answer.tokens} token{'s' * (answer.tokens != 1)}"]
    found = answer.likelihood
    if found and found.bytes:
        facts.append(
            '<span title="what the reference response costs the model, after the sections that '
            f'it wrote itself">{found.bits / found.bytes:.3g} bits per byte</span>'
        )
    return " ".join([*parts, ", ".join(facts)])


def _right(answer: Answer, exact: Metric | None) -> str:
    """A tick or a cross; nothing where the metric means nothing for the answer."""
    [(amount, weight)] = exact.amounts([answer]) if exact else [(0.0, 0.0)]
    return "" if not weight else " ✓" if amount else " ✗"


def _stop(answer: Answer) -> str:
    return answer.ending if answer.ending in ("eos", "length", "loop") else ""


def _arm(arm: Arm) -> str:
    return f"{arm.label}, seed {arm.seed}" if arm.tuned else arm.label


def _lang(text: str) -> str:
    language = detect_language(text)
    return f' lang="{language}"' if language else ""


def _text(text: str) -> str:
    return f'<div class="text" dir="auto"{_lang(text)}>{html.escape(text)}</div>'


def _completion(answer: Answer) -> str:
    """The whole completion once; its sections, where there are several, by name inside it."""
    repeat = longest_repeat(answer.text)
    marked = repeat if repeat and repeat.words >= MARKED else None
    text = answer.text
    if not text:
        return '<p class="dim">wrote nothing</p>'
    found = list(_sections(text, answer.sections)) if len(answer.sections) > 1 else []
    if not found:
        return _piece(text, 0, len(text), marked) + _parsed(answer.sections)
    parts, position = [], 0
    for name, start, end in [*found, ("", len(text), len(text))]:
        if text[position:start]:
            tag = _marked(text, position, start, marked)
            parts.append(f'<div class="text tag">{tag}</div>')
        if name:
            inside = _piece(text, start, end, marked) if start < end else _EMPTY
            parts.append(f"<h4>{html.escape(name)}</h4>{inside}")
        position = end
    return "".join(parts)


_EMPTY = '<p class="dim">empty</p>'


def _parsed(sections: Mapping[str, str]) -> str:
    """Sections whose text is not in the completion as it stands."""
    if len(sections) < 2:
        return ""
    return "".join(
        f"<h4>{html.escape(name)}</h4>{_text(text) if text else _EMPTY}"
        for name, text in sections.items()
    )


def _sections(text: str, sections: Mapping[str, str]) -> Iterator[Span]:
    """Where each section is in a completion; nothing if one is not there, in their order."""
    spans: list[Span] = []
    position = 0
    for number, (name, inside) in enumerate(sections.items(), 1):
        # The last from the end: a short one may be found in the tag before it.
        last = number == len(sections)
        start = text.rfind(inside, position) if last else text.find(inside, position)
        if start < 0:
            return
        position = start + len(inside)
        spans.append((name, start, position))
    yield from spans


def _piece(text: str, start: int, end: int, repeat: Repeat | None) -> str:
    inside = _marked(text, start, end, repeat)
    return f'<div class="text" dir="auto"{_lang(text[start:end])}>{inside}</div>'


def _marked(text: str, start: int, end: int, repeat: Repeat | None) -> str:
    """text[start:end] with what of the repeated stretch lies in it marked."""
    low, high = (repeat.start, repeat.end) if repeat else (end, end)
    low, high = (min(max(bound, start), end) for bound in (low, high))
    before, inside, after = (
        html.escape(piece) for piece in (text[start:low], text[low:high], text[high:end])
    )
    if not inside or repeat is None:
        return before + inside + after
    title = f"{repeat.words} words, a phrase of {repeat.period} again and again"
    return f'{before}<mark title="{title}">{inside}</mark>{after}'
