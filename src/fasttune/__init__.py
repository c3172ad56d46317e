"""fasttune: teach a small language model a prompt format.

This is the whole API that a plugin needs; plugins import nothing below it.
"""

from fasttune.errors import FasttuneError
from fasttune.plugins.exporter import Exporter, ExportJob, Reader
from fasttune.plugins.hookspecs import hookimpl
from fasttune.plugins.metric import Answer, Likelihood, Metric
from fasttune.plugins.template import Row, Segment, Template, given, learn
from fasttune.text.languages import detect_language
from fasttune.text.repetition import longest_repeat, split_words

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "ExportJob",
    "Exporter",
    "FasttuneError",
    "Likelihood",
    "Metric",
    "Reader",
    "Row",
    "Segment",
    "Template",
    "detect_language",
    "given",
    "hookimpl",
    "learn",
    "longest_repeat",
    "split_words",
]
