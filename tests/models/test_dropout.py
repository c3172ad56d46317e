"""The base model's own dropout, on a tiny Phi with the 0.1 that Phi-2 has behind every block."""

from __future__ import annotations

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest
import torch
from transformers import GPTNeoXConfig, LlamaConfig, PhiConfig

from fasttune.config import LoraConfig, ModelConfig
from fasttune.encoding.batches import pack
from fasttune.encoding.encode import Encoded
from fasttune.models.load import add_lora, base_dropout
from tests.conftest import choices_for, load_model

ROWS = [[*range(100, 140)], [*range(300, 325)], [*range(500, 533)]]


@pytest.fixture(params=["off", "config"])
def model(request, tiny_phi):
    """In training mode, with adapters that have a dropout of their own."""
    config = ModelConfig(
        name=str(tiny_phi), quantization="none", precision="fp32", dropout=request.param
    )
    choices = choices_for(config)
    model, _ = load_model(config, choices)
    model, _ = add_lora(model, LoraConfig(r=4, dropout=0.05), 0, choices)
    torch.manual_seed(0)
    return request.param, model.train()


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs, use_cache=False).logits[0]


def test_it_is_off_or_that_of_the_config_and_loras_stays(model):
    setting, model = model
    found = {m.p for n, m in model.named_modules() if type(m) is torch.nn.Dropout}
    adapters = {m.p for n, m in model.named_modules() if "lora_dropout.default" in n}
    assert adapters == {0.05}
    assert found == ({0.05, 0.0} if setting == "off" else {0.05, 0.1, 0.0})


def test_two_passes_in_training_are_one_function_only_where_it_is_off(model):
    setting, model = model
    targets = torch.tensor(ROWS[0][1:])

    def loss() -> float:
        found = logits(model, input_ids=torch.tensor([ROWS[0]]))[:-1]
        return float(torch.nn.functional.cross_entropy(found, targets))

    with model.disable_adapter():  # and with it LoRA's dropout
        first, second = loss(), loss()
    assert (first == second) == (setting == "off")


def test_rows_in_training_have_the_logits_of_the_rows_alone_only_where_it_is_off(model):
    setting, model = model
    batch = pack([Encoded(ids, [], 0) for ids in ROWS], [])
    with model.disable_adapter():
        packed = logits(model, input_ids=batch["input_ids"], position_ids=batch["position_ids"])
        alone = torch.cat([logits(model, input_ids=torch.tensor([row])) for row in ROWS])
    difference = (packed - alone).abs().max()
    assert difference < 1e-5 if setting == "off" else difference > 0.1


def test_an_attention_that_looks_its_dropout_up_is_told_as_well(tmp_path, phi2_tokenizer):
    from transformers import LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=51200, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, attention_dropout=0.5,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    phi2_tokenizer.save_pretrained(tmp_path)
    for dropout, expected in (("off", 0.0), ("config", 0.5)):
        config = ModelConfig(name=str(tmp_path), precision="fp32", dropout=dropout)
        model, _ = load_model(config, choices_for(config))
        assert model.model.layers[0].self_attn.attention_dropout == expected
        model.train()
        first, second = (logits(model, input_ids=torch.tensor([ROWS[0]])) for _ in range(2))
        assert torch.equal(first, second) == (dropout == "off")


@pytest.mark.parametrize(
    ("config", "setting", "line"),
    [
        (PhiConfig(resid_pdrop=0.1), "off",
         "dropout of the base model off (resid_pdrop 0.1 in its config)"),
        (PhiConfig(resid_pdrop=0.1, attention_dropout=0.25), "config",
         "dropout of the base model on (resid_pdrop 0.1, attention_dropout 0.25 in its config)"),
        (LlamaConfig(), "off", ""),
        (GPTNeoXConfig(), "off", ""),  # it names a classifier's 0.1
        (GPTNeoXConfig(hidden_dropout=0.1), "off",
         "dropout of the base model off (hidden_dropout 0.1 in its config)"),
    ],
)  # fmt: skip
def test_what_is_said_of_it(config, setting, line):
    said = base_dropout(config, ModelConfig(dropout=setting))
    assert said == line
