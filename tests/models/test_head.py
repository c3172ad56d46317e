"""The loss of the trained tokens against torch's cross entropy over all logits."""

from __future__ import annotations

# isort: split
import pytest
import torch
from transformers import AutoModelForCausalLM

from fasttune.encoding.batches import learned
from fasttune.encoding.encode import IGNORED
from fasttune.errors import FasttuneError
from fasttune.models import head


class Model:
    """As much of a transformers model as its head."""

    def __init__(self, bias: bool, cap: float | None, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.output = torch.nn.Linear(16, 50, bias=bias).to(dtype).requires_grad_(False)
        self.config = type("Config", (), {"final_logit_softcapping": cap})

    def get_output_embeddings(self):
        return self.output


def losses_of(model, hidden, labels):
    """`token_losses` at the places of the labels, as the collator finds them."""
    batch = learned({"labels": labels, "sections": labels, "attention_mask": labels})
    return head.token_losses(model, hidden, batch["places"], batch["targets"])


@pytest.fixture
def batch():
    torch.manual_seed(1)
    hidden = torch.randn(2, 30, 16)
    labels = torch.randint(0, 50, (2, 30))
    labels[0, :12] = labels[1, 20:] = IGNORED
    return hidden, labels


def reference(model, hidden, labels):
    logits = model.output(hidden)
    if cap := model.config.final_logit_softcapping:
        logits = cap * torch.tanh(logits / cap)
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 50), labels[:, 1:].reshape(-1), reduction="none"
    )[labels[:, 1:].reshape(-1) != IGNORED]


@pytest.mark.parametrize("cap", [None, 2.0], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_losses_and_gradients_are_those_of_torch(bias, cap, batch, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 7)
    model, (hidden, labels) = Model(bias, cap), batch
    weights = torch.rand(int((labels[:, 1:] != IGNORED).sum()))  # a different weight for each token
    found, expected = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    losses = losses_of(model, found, labels)
    wanted = reference(model, expected, labels)
    assert (losses - wanted).abs().max() < 1e-5
    (losses * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert (found.grad - expected.grad).abs().max() < 1e-6
    assert found.grad.abs().max() > 0.01


def test_no_more_than_a_chunk_of_logits_exists_and_only_for_trained_tokens(batch, monkeypatch):
    seen = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(head, "CHUNK", 7)
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, *rest: seen.append(len(x)) or linear(x, *rest)
    )
    hidden, labels = batch
    losses_of(Model(True, None), hidden.requires_grad_(), labels)
    assert max(seen) == 7 and sum(seen) == int((labels[:, 1:] != IGNORED).sum())


def test_a_confident_model_has_a_loss_that_does_not_overflow(batch):
    hidden, labels = batch
    hidden = (hidden * 1000).requires_grad_()
    model = Model(False, None)
    losses = losses_of(model, hidden, labels)
    assert torch.allclose(losses, reference(model, hidden, labels), rtol=1e-5)
    losses.sum().backward()
    assert hidden.grad.isfinite().all()


def test_a_batch_without_trained_tokens_has_no_losses(batch):
    hidden, labels = batch
    losses = losses_of(Model(True, None), hidden.requires_grad_(), labels * 0 + IGNORED)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_a_model_that_scales_its_logits_is_refused(kind, request, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(
        request.getfixturevalue(kind), dtype=torch.float32
    ).eval()
    head.check_head(model)
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(FasttuneError) as caught:
        head.check_head(model)
    assert "loss of this architecture is not known" in str(caught.value)
