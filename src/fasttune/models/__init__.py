"""Models and tokenizers; the only folder that imports unsloth."""
