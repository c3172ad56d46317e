"""From prompts to answers, and to the likelihood of a reference.

Call `models.unsloth.import_unsloth_on_gpu` before you import a module of this package: they import
transformers, which Unsloth patches.
"""
