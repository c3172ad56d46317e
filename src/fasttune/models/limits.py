"""Sizes that the kernels of a training step work with and the planner counts with."""

CHUNK = 256
"""Rows of logits that exist at one time: 256 x 51200 in fp32 are 52 MB."""

CACHED_ROWS = 8
"""Rows of logits that become losses and errors at one time on a CPU: 8 x 51200 in fp32 are 1.6 MB,
which fit into its second cache."""

SHORT = 512
"""Up to this length, a row's attention in bf16 on a CPU multiplies whole matrices and keeps its
scores, as transformers' eager attention does. It takes 0.4 times as long, forward and backward, as
the blocked kernel of scaled_dot_product_attention (230 tokens, 9 heads); the demo model's gradients
then differ from those in fp32 by 4.4 % instead of 3.8 %. Longer rows would keep too large a matrix.
"""
