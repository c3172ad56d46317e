"""From batches to a run folder: the trainer, its settings, and what listens to it."""

import fasttune.models.unsloth  # noqa: F401  before transformers, TRL and PEFT, which it patches
