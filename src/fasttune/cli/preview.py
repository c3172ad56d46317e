"""Commands: preview."""
