"""Training a run: settings, trainer, callbacks, checkpoints and reports.

Call `models.unsloth.import_unsloth` before you import a module of this package: they import
transformers, TRL and PEFT, which Unsloth patches.
"""
