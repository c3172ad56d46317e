"""From prompts to answers, and to the likelihood of a reference."""
