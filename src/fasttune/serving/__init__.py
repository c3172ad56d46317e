"""A run behind an OpenAI-compatible server of someone else's."""
