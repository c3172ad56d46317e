"""The command line: each module parses, calls and prints; no logic lives here."""

# Importing a module registers its commands with the app; --help lists them in this order.
from fasttune.cli import (  # noqa: F401
    bench,
    compare,
    data,
    doctor,
    export,
    generate,
    init,
    plan,
    runs,
    templates,
)
from fasttune.cli.app import main

__all__ = ["main"]
