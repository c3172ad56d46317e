"""Tokenizers and models: loading, LoRA, the output head, and the fast path of a training step."""
