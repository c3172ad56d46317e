"""Import this before transformers, TRL or PEFT in a test module: it imports Unsloth."""

from fasttune.models.unsloth import import_unsloth

import_unsloth()
