"""The command line: each module parses, calls and prints; no logic lives here."""

# The commands register themselves with the app, in this order.
from fasttune.cli import (
    bench,
    compare,
    data,
    doctor,
    evaluate,
    export,
    generate,
    init,
    plan,
    preview,
    run,
    runs,
    serve,
    templates,
)
from fasttune.cli.app import main

__all__ = [
    "bench",
    "compare",
    "data",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "init",
    "main",
    "plan",
    "preview",
    "run",
    "runs",
    "serve",
    "templates",
]
