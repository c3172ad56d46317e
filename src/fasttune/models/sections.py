"""Cross entropy per section, taken beside the training loss and without its logits.

The fused losses of the backends return one number and no logits. A hook on the decoder sees the
hidden states that any of them reads; from these the loss of the learned tokens alone is computed
again, in chunks and without gradients, and summed per section.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

CHUNK = 1024
"""Rows of logits that exist at one time: 1024 x 51200 in fp32 are 210 MB."""


def causal_lm(model: Any) -> Any:
    """The transformers model below PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The part of a causal language model that ends in hidden states."""
    inner = causal_lm(model)
    return getattr(inner, inner.base_model_prefix)


class SectionLoss:
    """Sums of cross entropy (in nats) and counts of tokens per section.

    Args:
        model: a causal language model, with or without PEFT.
        names: the sections, in the order of the indices in a batch's `sections`.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        self.names = list(names)
        self._model = causal_lm(model)
        self._decoder = decoder(model)
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.counts = torch.zeros(len(self.names), dtype=torch.int64)

    @property
    def total(self) -> float:
        """The sum over all sections, in nats."""
        return float(self.sums.sum())

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def means(self) -> dict[str, float]:
        """Section -> mean loss per token, for the sections that occurred."""
        return {
            name: float(total / count)
            for name, total, count in zip(self.names, self.sums, self.counts, strict=True)
            if count
        }

    @contextmanager
    def watch(self, labels: torch.Tensor, sections: torch.Tensor) -> Iterator[None]:
        """Add the losses of the forward pass that happens inside the block.

        Args:
            labels: [batch, tokens], unshifted, -100 where no loss is taken.
            sections: [batch, tokens], section index of each learned token, -1 elsewhere.
        """
        seen: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
            seen.append(hidden.detach())

        handle = self._decoder.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
        self.add(seen[-1], labels, sections)

    @torch.no_grad()
    def add(self, hidden: torch.Tensor, labels: torch.Tensor, sections: torch.Tensor) -> None:
        """Add the losses of hidden states [batch, tokens, width]."""
        losses = token_losses(self._model, hidden, labels)
        owners = sections[:, 1:][labels[:, 1:] != -100].cpu()
        self.sums.index_add_(0, owners, losses.double().cpu())
        self.counts.index_add_(0, owners, torch.ones_like(owners))


@torch.no_grad()
def token_losses(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of each learned token, without its gradient.

    Args:
        model: the transformers model, for its head.
        hidden: [batch, tokens, width], what its decoder gave.
        labels: [batch, tokens], unshifted, -100 where no loss is taken.

    Returns:
        [learned tokens], row by row in order; never more than CHUNK rows of logits exist.
    """
    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    learned = labels[:, 1:] != -100
    states = hidden[:, :-1][learned]
    targets = labels[:, 1:][learned].to(states.device)
    losses = [torch.zeros(0)]
    for part, target in zip(states.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = head(part.to(head.weight.dtype)).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        losses.append(F.cross_entropy(logits, target, reduction="none").cpu())
    return torch.cat(losses)
