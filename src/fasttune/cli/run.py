"""Commands: run."""
