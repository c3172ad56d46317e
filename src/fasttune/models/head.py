"""Cross entropy of the learned tokens, computed from hidden states, and its sums per section.

The logits of all tokens of a step would be the largest tensor in training. Here the head sees only
the positions whose next token is learned, LOGIT_ROWS of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fasttune.errors import FasttuneError
from fasttune.models.choices import CACHED_ROWS, LOGIT_ROWS


def causal_lm(model: Any) -> Any:
    """The transformers model below PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The part of a causal language model that computes hidden states, without the head."""
    inner = causal_lm(model)
    return getattr(inner, inner.base_model_prefix)


def token_losses(
    model: Any, hidden: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Cross entropy in nats of each learned token, differentiable in the hidden states.

    Args:
        model: a transformers model with a frozen head, with or without a bias.
        hidden: [batch, tokens, width], its decoder's output.
        places: [learned], flat indices into [batch, tokens] of the states that predict a target.
        targets: [learned], the learned tokens.

    Returns:
        [learned] in fp32; at most LOGIT_ROWS rows of logits exist at one time.
    """
    head = model.get_output_embeddings()
    states = hidden.flatten(0, 1).index_select(0, places.to(hidden.device)).to(head.weight.dtype)
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    losses: torch.Tensor = _TokenLosses.apply(
        states, head.weight, head.bias, targets.to(hidden.device), cap
    )
    return losses


class _TokenLosses(torch.autograd.Function):
    """loss_i = -log softmax(z_i)[t_i] with z = cap(W h + b).

    The forward pass also computes dloss_i/dh_i, so the backward pass needs no logits. A chunk's
    logits become its errors p - 1[t] in place; on a CPU, CACHED_ROWS at a time.

    The gradient exists before the loss is scaled. So in fp16 it is kept in fp32, and each row of
    errors is divided by its largest one before rounding, or small ones would become 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        cap: float | None,
    ) -> torch.Tensor:
        losses = torch.empty(len(states), dtype=torch.float32, device=states.device)
        half = states.dtype == torch.float16
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(states, dtype=torch.float32 if half else states.dtype)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), LOGIT_ROWS):
                part = slice(start, start + LOGIT_ROWS)
                logits = torch.nn.functional.linear(states[part], weight, bias)
                scales = losses.new_ones(len(logits), 1)
                rows = CACHED_ROWS if logits.device.type == "cpu" else LOGIT_ROWS
                columns = (logits, targets[part, None], losses[part], scales)
                for z, target, loss, scale in zip(*(x.split(rows) for x in columns), strict=True):
                    wide = z.float()
                    if cap is not None:
                        wide = wide.div(cap).tanh_().mul_(cap)
                    log_p = wide.log_softmax(1)
                    torch.neg(log_p.gather(1, target)[:, 0], out=loss)
                    if gradient is None:
                        continue
                    error = log_p.exp_()
                    error.scatter_add_(1, target, error.new_full(target.shape, -1.0))
                    if cap is not None:
                        error.mul_(1 - (wide / cap) ** 2)
                    if half:
                        scale.copy_(error.abs().amax(1, keepdim=True).clamp_min_(1e-30))
                        error.div_(scale)
                    z.copy_(error)
                if half and gradient is not None:
                    gradient[part] = torch.mm(logits, weight).float().mul_(scales)
                elif gradient is not None:
                    torch.mm(logits, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.dtype = states.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient * upstream[:, None].to(gradient.dtype)
        return scaled.to(ctx.dtype), None, None, None, None


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model if `token_losses` differ from those of its own logits: some architectures
    scale them."""
    inner = causal_lm(model)
    ids = torch.arange(8, device=next(inner.parameters()).device)[None]
    training = model.training
    model.eval()  # without dropout, which would differ between the two passes
    logits = inner(input_ids=ids, use_cache=False).logits[0, :-1].float()
    hidden = decoder(inner)(input_ids=ids, use_cache=False).last_hidden_state
    model.train(training)
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    losses = token_losses(inner, hidden, torch.arange(7), ids[0, 1:])
    difference = float((losses - expected).abs().max())
    if difference > 0.1 * float(logits.std()):  # rounding in bf16 causes about 0.01
        raise FasttuneError(
            f"fasttune computes the wrong loss for this architecture, by {difference:.3g} nats",
            f"model type '{inner.config.model_type}'",
            "choose another model: this one changes its logits in a way that is not supported",
        )


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
