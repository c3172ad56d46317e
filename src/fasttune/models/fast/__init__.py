"""The fast path of a training step: attention of packed rows, grouped LoRA layers, fused norms."""
