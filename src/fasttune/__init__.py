"""fasttune: teach a small language model a prompt format.

This is the whole API that a plugin needs; plugins import nothing below it.
"""

from fasttune.errors import FasttuneError
from fasttune.exporter import Exporter, ExportJob, Reader
from fasttune.hookspecs import hookimpl
from fasttune.metrics import Answer, Metric
from fasttune.template import Row, Segment, Template, given, learn

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "ExportJob",
    "Exporter",
    "FasttuneError",
    "Metric",
    "Reader",
    "Row",
    "Segment",
    "Template",
    "given",
    "hookimpl",
    "learn",
]
