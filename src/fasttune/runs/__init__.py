"""Run folders: one run, all of them, and resuming."""

from fasttune.runs.folder import Run as Run
from fasttune.runs.index import create_run as create_run
from fasttune.runs.index import find_run as find_run
from fasttune.runs.index import find_trained as find_trained
from fasttune.runs.index import is_run as is_run
from fasttune.runs.index import list_runs as list_runs
