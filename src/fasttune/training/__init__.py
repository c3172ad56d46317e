"""From batches to a run folder: the trainer, its settings, and what listens to it."""
