"""From prompts to answers, and to the likelihood of a reference."""

import fasttune.models.unsloth  # noqa: F401  before transformers and PEFT, which it patches
