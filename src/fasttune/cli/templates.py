"""Commands: templates."""
