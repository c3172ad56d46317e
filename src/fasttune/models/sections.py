"""The training loss, split into the template's sections."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fasttune.encode import IGNORED


class SectionLoss:
    """Sums of cross entropy (in nats) and counts of tokens per section.

    Args:
        names: the sections, in the order of the indices in a batch's `sections`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.counts = torch.zeros(len(self.names), dtype=torch.int64)

    @property
    def mean(self) -> float:
        """The mean loss per token over all sections."""
        return float(self.sums.sum() / self.counts.sum().clamp(min=1))

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

    def add(self, losses: torch.Tensor, labels: torch.Tensor, sections: torch.Tensor) -> None:
        """Add the losses of a batch.

        Args:
            losses: [learned tokens], as `token_losses` returns them.
            labels: [batch, tokens], unshifted, -100 where no loss is taken.
            sections: [batch, tokens], section index of each learned token, -1 elsewhere.
        """
        owners = sections[:, 1:][labels[:, 1:] != IGNORED].cpu()
        self.sums.index_add_(0, owners, losses.detach().double().cpu())
        self.counts.index_add_(0, owners, torch.ones_like(owners))
