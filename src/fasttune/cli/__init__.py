"""The command line: each module parses, calls and prints; no logic lives here."""

from fasttune.cli.app import main

__all__ = ["main"]
