"""The fast path of a training step: attention row by row, grouped LoRA layers, fused norms."""
