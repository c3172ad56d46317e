"""fasttune: teach a small language model a prompt format.

What a plugin needs is here at once, and plugins import nothing below it; their tests find
`check_template` and `load_plugin` here. The verbs (`load_config`, `prepare`, `preview`, `plan`,
`train`, `open_run`, `load`, `export`, `compare`, `evaluate`, `serve`) are here too, and so is
`Measuring`; they import what they need when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttune.errors import FasttuneError
from fasttune.formats.chat import ChatFormat
from fasttune.formats.parts import END, Segment, choose, given, learn
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.plugins.exporter import (
    EXACT,
    QUANTISED,
    ROUNDED,
    Bounds,
    Exporter,
    ExportJob,
    Reader,
)
from fasttune.plugins.hookspecs import hookimpl
from fasttune.plugins.metric import Answer, Likelihood, Metric
from fasttune.text.languages import detect_language
from fasttune.text.repetition import longest_repeat, split_words

if TYPE_CHECKING:
    from fasttune.comparison.compare import compare, evaluate
    from fasttune.comparison.plan import Measuring
    from fasttune.config import load_config
    from fasttune.exports.export import export
    from fasttune.inspection.check import check_template
    from fasttune.inspection.preview import preview
    from fasttune.job import prepare
    from fasttune.planning.forecast import plan
    from fasttune.plugins.discovery import load_plugin
    from fasttune.runs.index import find_run as open_run
    from fasttune.serving.serve import serve
    from fasttune.source import load
    from fasttune.start import train

__version__ = "0.1.0"
__all__ = [
    "END",
    "EXACT",
    "QUANTISED",
    "ROUNDED",
    "Answer",
    "Bounds",
    "ChatFormat",
    "ExportJob",
    "Exporter",
    "FasttuneError",
    "Likelihood",
    "Measuring",
    "Metric",
    "Reader",
    "Row",
    "Segment",
    "Template",
    "check_template",
    "choose",
    "compare",
    "detect_language",
    "evaluate",
    "export",
    "given",
    "hookimpl",
    "learn",
    "load",
    "load_config",
    "load_plugin",
    "longest_repeat",
    "open_run",
    "plan",
    "prepare",
    "preview",
    "serve",
    "split_words",
    "train",
]


_VERBS = {
    "Measuring": "comparison.plan:Measuring",
    "check_template": "inspection.check:check_template",
    "compare": "comparison.compare:compare",
    "evaluate": "comparison.compare:evaluate",
    "export": "exports.export:export",
    "load": "source:load",
    "load_config": "config:load_config",
    "load_plugin": "plugins.discovery:load_plugin",
    "open_run": "runs.index:find_run",
    "plan": "planning.forecast:plan",
    "prepare": "job:prepare",
    "preview": "inspection.preview:preview",
    "serve": "serving.serve:serve",
    "train": "start:train",
}
"""Where the verbs live: each module is imported when its verb is first asked for."""


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        module, _, verb = _VERBS[name].partition(":")
        return getattr(import_module(f"fasttune.{module}"), verb)
    raise AttributeError(f"module 'fasttune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
