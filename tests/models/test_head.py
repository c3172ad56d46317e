"""The loss of the trained tokens against torch's cross entropy over all logits."""

from __future__ import annotations

# isort: split
import pytest
import torch
from transformers import AutoModelForCausalLM

from fasttune.encoding.batches import pad
from fasttune.encoding.encode import IGNORED, Encoded, Span
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
    rows = [
        Encoded(row, [Span("all", n, n + 1, True) for n in range(1, 30) if row[n] != IGNORED], 1)
        for row in labels.tolist()
    ]
    batch = pad(rows, ["all"], 0)
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
    monkeypatch.setattr(head, "LOGIT_ROWS", 7)
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
    monkeypatch.setattr(head, "LOGIT_ROWS", 7)
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
    assert "wrong loss for this architecture" in str(caught.value)


def test_a_model_with_dropout_in_training_is_accepted_and_stays_in_training(tiny_phi):
    """Two passes of it differ: a comparison of them must not see that."""
    model = AutoModelForCausalLM.from_pretrained(tiny_phi, dtype=torch.float32).train()
    assert model.model.layers[0].resid_dropout.p == 0.1
    ids = torch.arange(8)[None]
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    assert (first - second).abs().max() > 0.1
    head.check_head(model)
    assert model.training and model.model.layers[0].resid_dropout.training
    head.check_head(model.eval())
    assert not model.training


# fp16: the gradient is formed before the loss is scaled

SCALE = 65536.0  # where GradScaler begins
MARGINS = {0.5: 4.125, 0.1: 6.3125, 1e-2: 8.75, 1e-4: 13.375, 1e-5: 15.625, 1e-6: 17.9375}
"""1 - p[target] -> how far the target's logit lies above those of the 63 others."""


def hadamard(size: int) -> torch.Tensor:
    """Orthogonal rows of ones and minus ones."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_a_scaled_loss_in_fp16_has_the_gradients_of_fp32(bias):
    """With errors down to 1e-6, which vanish where the gradient is kept in fp16."""
    rows = hadamard(64)
    model = Model(bias, None)
    model.output = torch.nn.Linear(64, 64, bias=bias).half().requires_grad_(False)
    model.output.weight.copy_(rows / 64)
    if bias:
        model.output.bias.fill_(0.25)
    # The state m W[t] 64 has the logit m at t and 0 elsewhere, to the last bit in fp16 as well.
    targets = torch.arange(len(MARGINS)) * 7 + 3
    states = torch.tensor([*MARGINS.values()])[:, None] * rows[targets]
    hidden = states.half()[None].requires_grad_()
    losses = head.token_losses(model, hidden, torch.arange(len(targets)), targets)
    (losses.mean() * SCALE).backward()
    assert hidden.grad.dtype == torch.float16 and losses.dtype == torch.float32

    exact = states.clone().requires_grad_()
    weight = rows / 64
    wanted = torch.nn.functional.cross_entropy(exact @ weight.T, targets, reduction="none")
    (wanted.mean() * SCALE).backward()
    assert torch.allclose(losses, wanted, rtol=1e-6, atol=0)
    assert [float(1 - x.exp()) for x in -wanted] == pytest.approx([*MARGINS], rel=0.1)
    largest = exact.grad.abs().amax(1, keepdim=True)
    assert ((hidden.grad[0].float() - exact.grad).abs() <= 2**-10 * largest).all()

    # The control: the same product, in fp16 and scaled afterwards.
    error = (exact.detach() @ weight.T).softmax(1) - torch.eye(64)[targets]
    naive = (error.half() @ weight.half()).float() / len(targets) * SCALE
    assert not naive[-1].any() and exact.grad[-1].abs().min() > 1e-5
    assert ((naive - exact.grad).abs() > 0.1 * largest).any(1).tolist()[-2:] == [True, True]
