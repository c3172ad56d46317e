"""Limits of a training step that its kernels keep and the planner counts with."""

CHUNK = 256
"""Rows of logits that exist at one time: 256 x 51200 in fp32 are 52 MB."""

ROWS = 8
"""Of these so many at a time become losses and errors on a CPU: 8 x 51200 in fp32 are 1.6 MB, less
than its second cache."""

SHORT = 512
"""Rows of up to this many tokens multiply whole matrices on a CPU in bf16, as transformers' eager
attention does, and keep their scores. That takes 0.4 times as long, forward and backward, as the
blocked kernel of scaled_dot_product_attention (230 tokens, 9 heads); the gradients of the demo
model are then 4.4 % from those in fp32 instead of 3.8 %. Longer rows would keep too large a
matrix."""
