"""A comparison as an HTML page: one file with every figure, every chart and every answer."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fasttune.comparison.answers import answers_html
from fasttune.comparison.bootstrap import Interval
from fasttune.comparison.charts import charts, colour, forest, label_html
from fasttune.comparison.result import ENOUGH, Arm, Comparison, Difference
from fasttune.plugins.metric import Metric

_ARROWS = {
    "higher": '<span class="arrow" title="more is better">↑</span>',
    "lower": '<span class="arrow" title="less is better">↓</span>',
    "": "",
}
_HERE = Path(__file__).parent


def to_html(comparison: Comparison) -> str:
    """A page of its own: no other file, light or dark as the reader's system is. Without its
    script everything can still be read."""
    style, script = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("compare.css", "compare.js")
    )
    named = _tuned(comparison)
    what = "Prompt formats compared" if len(named) > 1 else "Evaluation"
    title = _escape(f"{what}: {', '.join(named)}")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        _about(comparison),
        _verdict(comparison),
        _figures(comparison),
        _differences(comparison),
        *(_groups(comparison, column) for column in comparison.groups),
        _training(comparison),
        answers_html(comparison),
        f"<script>\n{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _escape(text: object) -> str:
    return html.escape(str(text))


def _tuned(comparison: Comparison) -> list[str]:
    tuned = list(dict.fromkeys(arm.label for arm in comparison.arms if arm.tuned))
    return tuned or comparison.labels


def _about(comparison: Comparison) -> str:
    about = "".join(
        f"<div><dt>{_escape(name)}</dt><dd>{_escape(text)}</dd></div>"
        for name, text in comparison.about.items()
    )
    notes = "".join(f"<p>{_escape(note)}</p>" for note in comparison.notes)
    return (f'<dl class="about">{about}</dl>' if about else "") + (
        f'<div class="notes" role="note"><strong>Read this first</strong>{notes}</div>'
        if notes
        else ""
    )


def _verdict(comparison: Comparison) -> str:
    between: list[str] = []
    base: list[str] = []
    for pair, paragraph in zip(comparison.pairs(), comparison.sentences(), strict=True):
        (between if _between(comparison, *pair) else base).append(f"<p>{_escape(paragraph)}</p>")
    if not between and not base:
        return ""
    against = f"<summary>Against the untuned base</summary>{''.join(base)}"
    return (
        f'<section class="verdict"><h2>Verdict</h2><div class="between">{"".join(between)}</div>'
        f"{f'<details{_open(not between)}>{against}</details>' if base else ''}</section>"
    )


def _between(comparison: Comparison, left: str, right: str) -> bool:
    """Whether two labels are both trained formats."""
    return {left, right} <= {*_tuned(comparison)}


def _open(now: bool) -> str:
    return " open" if now else ""


# Tables


def _table(what: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table in a container that scrolls by itself: column heads; (row head, cells) per row."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(what)}"><table>'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _figure_table(comparison: Comparison, what: str) -> str:
    head = ["metric", *(label_html(comparison, label) for label in comparison.labels)]
    rows = [
        (
            f"{_metric(metric)}<small>{_escape(metric.description)}{_counted(comparison, metric)}"
            "</small>",
            [_figure(comparison, label, metric) for label in comparison.labels],
        )
        for metric in comparison.metrics
    ]
    return _table(what, head, rows)


def _figures(comparison: Comparison) -> str:
    return (
        '<section><h2>Figures</h2><p class="dim">Below each figure its 95 % interval. ↑ more is '
        "better, ↓ less is better, neither: the figure describes and does not judge. ★ better than "
        "every other trained format, beyond the "
        f"noise.</p>{_figure_table(comparison, 'figures')}{_per_seed(comparison)}</section>"
    )


def _per_seed(comparison: Comparison) -> str:
    """The figures of every trained arm, where a label has several."""
    if all(len(comparison.arms_of(label)) == 1 for label in comparison.labels):
        return ""
    tuned = [arm for arm in comparison.arms if arm.tuned]
    head = ["metric", *(f"{label_html(comparison, arm.label)}{_seed(arm)}" for arm in tuned)]
    rows = [
        (
            _metric(metric),
            [
                _number(comparison.figures[arm.label][metric.name].seeds[str(arm.seed)])
                for arm in tuned
            ],
        )
        for metric in comparison.metrics
    ]
    return (
        '<details class="seeds"><summary>The figures of every seed</summary>'
        f"{_table('figures of every seed', head, rows)}</details>"
    )


def _counted(comparison: Comparison, metric: Metric) -> str:
    counted = comparison.counted(metric.name)
    return f"; counts {counted}" if counted else ""


def _metric(metric: Metric) -> str:
    name = _escape(metric.name).replace("_", "_<wbr>")
    return f"<b>{name}</b> {_ARROWS[metric.better]}"


def _figure(comparison: Comparison, label: str, metric: Metric) -> str:
    figure = comparison.figures[label][metric.name]
    seeds = "; ".join(f"seed {seed}: {_number(value)}" for seed, value in figure.seeds.items())
    title = f' title="{_escape(seeds)}"' if len(figure.seeds) > 1 else ""
    best = ' <span class="best" title="better than every other">★</span>'
    return (
        f"<span{title}>{_number(figure.interval.value)}</span>"
        f"{best if _is_best(comparison, label, metric) else ''}{_bounds(figure.interval)}"
    )


def _is_best(comparison: Comparison, label: str, metric: Metric) -> bool:
    found = [
        d.better
        for d in comparison.differences
        if d.metric == metric.name
        and label in (d.left, d.right)
        and _between(comparison, d.left, d.right)
    ]
    return bool(found) and set(found) == {label}


def _bounds(found: Interval) -> str:
    if math.isnan(found.low):
        return ""
    return f"<small>{_number(found.low)} to {_number(found.high)}</small>"


def _number(value: float) -> str:
    """Three significant digits, whole thousands; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return text.replace("-", "−")


def _differences(comparison: Comparison) -> str:
    head = ["metric", "difference", "95 % interval", "better"]
    between: list[str] = []
    base: list[str] = []
    for left, right in comparison.pairs():
        rows = [
            (_metric(metric), _difference(comparison, metric, found))
            for metric in comparison.metrics
            for found in comparison.between(left, right)
            if found.metric == metric.name
        ]
        trained = _between(comparison, left, right)
        (between if trained else base).append(
            f'<details class="pair"{_open(trained)}><summary>'
            f"<h3>{label_html(comparison, left)} − {label_html(comparison, right)}</h3></summary>"
            f"{_table(f'{left} − {right}', head, rows)}</details>"
        )
    groups = "".join(
        f'<div class="pairs">{"".join(group)}</div>' for group in (between, base) if group
    )
    if not groups:
        return ""
    return (
        '<section><h2>Differences</h2><p class="dim">Taken on the same rows. Where the interval '
        "holds 0, the difference may be chance: noise. The upright line is 0; the lines of a "
        "metric have one scale between trained formats, and another against the untuned base.</p>"
        f"{groups}</section>"
    )


def _difference(comparison: Comparison, metric: Metric, found: Difference) -> list[str]:
    interval = found.interval
    if math.isnan(interval.low):
        return [_number(interval.value), "", "not measured on both sides"]
    trained = _between(comparison, found.left, found.right)
    same = [
        d.interval
        for d in comparison.differences
        if d.metric == metric.name and _between(comparison, d.left, d.right) == trained
    ]
    reach = max(abs(b) for i in same for b in (i.low, i.value, i.high) if not math.isnan(b))
    fill = colour(comparison, found.better) if found.better else "currentColor"
    if found.better:
        judged = label_html(comparison, found.better)
    else:
        word = "described" if not metric.better else "noise"
        judged = f'<span class="dim">{word if found.rows >= ENOUGH else "too few rows"}</span>'
    value = f"{_number(interval.value)}{_bounds(interval)}"
    return [value, forest(found, reach or 1.0, fill), judged]


def _groups(comparison: Comparison, column: str) -> str:
    """Verdict and figures for each value of a column."""
    parts = []
    for value, group in comparison.groups[column].items():
        said = "".join(f"<p>{_escape(text)}</p>" for text in group.sentences(tuned_only=True))
        parts.append(
            f'<details class="pair"><summary><h3>{_escape(value)}, {group.rows} rows</h3></summary>'
            f"{said}{_figure_table(group, f'figures, {column} {value}')}</details>"
        )
    return f"<section><h2>By {_escape(column)}</h2>{''.join(parts)}</section>"


# Training


def _training(comparison: Comparison) -> str:
    swatches = " ".join(label_html(comparison, label) for label in _tuned(comparison))
    figures = "\n".join(
        f"<figure><h3>{_escape(chart.title)}</h3>{chart.svg}"
        f"<figcaption>{_escape(chart.note)}</figcaption></figure>"
        for chart in charts(comparison)
    )
    trained = [arm for arm in comparison.arms if arm.facts]
    names = list(dict.fromkeys(name for arm in trained for name in arm.facts or {}))
    rows = [
        (
            f"{label_html(comparison, arm.label)}{_seed(arm)}",
            [_fact((arm.facts or {}).get(name, "")) for name in names],
        )
        for arm in trained
    ]
    table = _table("trainings", ["", *map(_escape, names)], rows) if rows else ""
    return (
        f'<section><h2>Training and answers at a glance</h2><p class="legend">{swatches}</p>'
        '<p class="dim">Losses per token of two formats cannot be compared with each other: each '
        "learns other tokens after another prompt. Bits per byte are for that.</p>"
        f'<div class="charts">{figures}</div>{table}</section>'
    )


def _fact(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return _number(value) if number else _escape(value)


def _seed(arm: Arm) -> str:
    return f" <small>seed {arm.seed}</small>" if arm.tuned else ""
