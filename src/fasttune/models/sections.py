"""The training loss, split into the template's sections."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class SectionLoss:
    """Sums of cross entropy (in nats) and counts of tokens per section, on the losses' device:
    reading them waits for a GPU.

    Args:
        names: the sections, in the order of the indices in a batch's `owners`.
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
        sections = zip(self.names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in sections if count}

    def include(self, other: SectionLoss) -> None:
        """Add the losses of another one with the same sections."""
        self.sums = self.sums.to(other.sums.device) + other.sums
        self.counts = self.counts.to(other.counts.device) + other.counts

    def add(self, losses: torch.Tensor, owners: torch.Tensor) -> None:
        """Add the losses of a batch.

        Args:
            losses: [learned], as `token_losses` returns them.
            owners: [learned], the section index of each.
        """
        owners = owners.to(losses.device)
        self.sums = self.sums.to(losses.device)
        self.counts = self.counts.to(losses.device)
        self.sums.index_add_(0, owners, losses.detach().double())
        self.counts.index_add_(0, owners, torch.ones_like(owners))
