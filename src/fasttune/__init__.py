"""fasttune: teach a small language model a prompt format.

What a plugin needs is here at once, and plugins import nothing below it; their tests find
`check_template` and `load_plugin` here. The verbs (`load_config`, `prepare`, `preview`, `plan`,
`train`, `open_run`, `load`, `export`, `compare`, `evaluate`, `serve`; see `fasttune.api`) are here
too, and import what they need when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttune.errors import FasttuneError
from fasttune.formats.row import Row
from fasttune.formats.template import END, Segment, Template, choose, given, learn
from fasttune.plugins.exporter import (
    EXACT,
    QUANTISED,
    ROUNDED,
    Bounds,
    ChatFormat,
    Exporter,
    ExportJob,
    Reader,
)
from fasttune.plugins.hookspecs import hookimpl
from fasttune.plugins.metric import Answer, Likelihood, Metric
from fasttune.text.languages import detect_language
from fasttune.text.repetition import longest_repeat, split_words

if TYPE_CHECKING:
    from fasttune.api import (
        compare,
        evaluate,
        export,
        load,
        load_config,
        open_run,
        plan,
        prepare,
        preview,
        serve,
        train,
    )
    from fasttune.inspection.check import check_template
    from fasttune.plugins.discovery import load_plugin

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


_ELSEWHERE = {
    "check_template": "fasttune.inspection.check",
    "load_plugin": "fasttune.plugins.discovery",
}
"""What is no verb of `fasttune.api`, and imported when it is first asked for all the same."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "fasttune.api")), name)
    raise AttributeError(f"module 'fasttune' has no attribute '{name}'")
