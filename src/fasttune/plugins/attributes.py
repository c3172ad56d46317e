"""What a template, a metric and an exporter must be before anything uses them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fasttune.files import valid_name
from fasttune.plugins.exporter import Exporter
from fasttune.plugins.guard import NOWHERE, Place, is_text, place_of, short
from fasttune.plugins.metric import Metric
from fasttune.plugins.template import Template


def wrong_attribute(thing: Any) -> str:
    """What is wrong with the first attribute of a template, a metric or an exporter that is not
    what it must be, or ""."""
    name = getattr(thing, "name", None)
    if not valid_name(name):
        said = (
            f"name is {short(name)}" if hasattr(thing, "name") else "there is no attribute 'name'"
        )
        return f"{said}: use letters, digits, - _ and ., not starting with a dot"
    if not is_text(thing.description):
        return f"description is {short(thing.description)}, not text"
    if isinstance(thing, Template):
        return _of_template(thing)
    return _of_metric(thing) if isinstance(thing, Metric) else _of_exporter(thing)


def _of_template(template: Template) -> str:
    for attribute in ("tags", "required"):
        value = getattr(template, attribute)
        if not isinstance(value, tuple | list) or not all(is_text(each) and each for each in value):
            return f"{attribute} is {short(value)}, not a tuple of texts, as ('a', 'b') or ('a',)"
    targets = template.targets
    if (
        not isinstance(targets, Mapping)
        or not targets
        or not all(is_text(each) and each for pair in targets.items() for each in pair)
    ):
        return f"targets is {short(targets)}, not a dict with at least one section and its column"
    if not is_text(template.system):
        return f"system is {short(template.system)}, not text"
    if type(template).turn is not Template.turn and not template.holds_turns:
        return "segments() and turn() are both there: turn() alone makes the segments"
    return _no_method(template, Template, "segments", "parse", "prompt", "render")


def _of_metric(metric: Metric) -> str:
    if not callable(metric.measure):
        return f"measure is {short(metric.measure)}, not a function"
    if metric.better not in ("higher", "lower", ""):
        return f"better is {short(metric.better)}, not 'higher', 'lower' or ''"
    return ""


def _of_exporter(exporter: Exporter) -> str:
    options = exporter.options
    if not isinstance(options, Mapping):
        return f"options is {short(options)}, not a dict"
    for option, values in options.items():
        texts = isinstance(values, tuple | list) and all(map(is_text, values))
        if not valid_name(option) or not texts:
            return f"options has {short({option: values})}, not a name and a tuple of texts"
    return _no_method(exporter, Exporter, "write", "open", "bounds", "usage", "needed_bytes")


_NEEDED = ("segments", "write")


def _no_method(thing: object, base: type, *methods: str) -> str:
    for method in methods:
        defined = getattr(type(thing), method)
        missing = method in _NEEDED and defined is vars(base)[method]
        if missing or not callable(defined):
            return f"there is no method {method}()"
    return ""


def place_of_thing(thing: Any) -> Place:
    """Where a template, a metric or an exporter is defined."""
    if isinstance(thing, Metric):
        return place_of(thing.measure)
    try:
        kind = type(thing)
        return Place(inspect.getfile(kind), inspect.getsourcelines(kind)[1])
    except (TypeError, OSError):  # made by a program
        return NOWHERE
