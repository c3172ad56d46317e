"""Shapes read from configs, against transformers' own models on the meta device."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fasttune.errors import FasttuneError
from fasttune.models.architectures import FAMILIES
from fasttune.models.load import choose_targets, linear_names
from fasttune.planning.shape import BUILT_IN, UnknownArchitecture, read_shape, shape_of

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
VARIANTS = [
    ("phi", {"num_attention_heads": 3, "hidden_size": 240}),
    ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"num_key_value_heads": 2, "head_dim": 32}),
    ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("qwen3", {"num_key_value_heads": 2, "head_dim": 48}),
    ("gemma", {"num_key_value_heads": 1, "head_dim": 48}),
]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=lambda v: v if type(v) is str else None)
def test_sizes_are_those_of_transformers(kind, changes):
    config = AutoConfig.for_model(kind, **{**SMALL, **changes})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(json.loads(config.to_json_string(use_diff=False)), "here")
    head = model.get_output_embeddings()
    linears = {
        name.rsplit(".", 1)[-1]: (module.in_features, module.out_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert {n.name: (n.inputs, n.outputs, n.bias) for n in shape.linears} == linears
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert set(linears) == set(
        FAMILIES[kind].targets
    )  # one table of names for planning and for LoRA


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_targets_of_lora_are_all_linear_layers_of_a_block(kind):
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **SMALL, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config)
    assert choose_targets(model, ()) == list(FAMILIES[kind].targets)
    assert {*linear_names(model)} == {*FAMILIES[kind].targets}


def test_every_family_is_compared_with_transformers():
    assert {kind for kind, _ in VARIANTS} == {
        kind for kind, family in FAMILIES.items() if family.planned
    }


def test_phi_2():
    shape = read_shape("microsoft/phi-2")
    # 32 layers of 4 x 2560^2 and 2 x 2560 x 10240
    assert shape.linear_weights == 2_516_582_400
    # ... and 2 x 51200 x 2560, biases of 5 x 2560 + 10240 a layer, 33 LayerNorms, the head's bias
    assert shape.parameters == 2_779_683_840
    # 16 x (4 x 5120 + 2 x 12800) x 32
    assert shape.lora_parameters(16) == 23_592_960
    # 16 x 3 x 5120 x 32: what Unsloth's own default list reaches
    assert shape.lora_parameters(16, ["q_proj", "k_proj", "v_proj"]) == 7_864_320
    assert shape.max_length == 2048 and shape.stored == "float16"


def test_phi_2_has_its_published_config():
    """What decides about the loss and not about sizes, where a newer default could slip in."""
    config = AutoConfig.for_model(**BUILT_IN["microsoft/phi-2"])
    assert (config.hidden_act, config.layer_norm_eps, config.qk_layernorm) == (
        "gelu_new",
        1e-5,
        False,
    )
    assert (config.resid_pdrop, config.embd_pdrop, config.attention_dropout) == (0.1, 0, 0)
    assert config.rope_parameters["partial_rotary_factor"] == 0.4
    assert config.tie_word_embeddings is False and config.eos_token_id == 50256
    assert str(config.dtype).endswith("float16")


def test_the_demo_model_is_built_in():
    shape = read_shape("SmolLM2-135M-Instruct")
    assert shape.parameters == 134_515_008
    assert shape.lora_parameters(16) == 4_884_480
    assert (shape.attention, shape.keys, shape.tied) == (576, 192, True)


def test_a_folder_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BUILT_IN["microsoft/phi-2"]))
    assert read_shape(str(tmp_path)).parameters == 2_779_683_840


def test_what_cannot_be_read_is_an_error(tmp_path):
    for kind in ("mamba", "gemma2"):  # of the other one LoRA's targets are known
        with pytest.raises(UnknownArchitecture, match=f"architecture '{kind}'") as caught:
            shape_of({"model_type": kind}, "here")
        assert caught.value.hint.startswith("it knows phi, llama, mistral, qwen2, qwen3, gemma; ")
    with pytest.raises(FasttuneError, match="a size is missing") as caught:
        shape_of({**SMALL, "model_type": "phi", "hidden_size": None}, "here")
    assert not isinstance(caught.value, UnknownArchitecture)
    with pytest.raises(FasttuneError, match="the folder holds no model") as caught:
        read_shape(str(tmp_path))
    assert caught.value.where == f"{tmp_path}: no config.json"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FasttuneError, match=r"config\.json is damaged"):
        read_shape(str(tmp_path))
    with pytest.raises(FasttuneError, match="'o_proj' matches no layer of this phi"):
        read_shape("microsoft/phi-2").lora_parameters(16, ["q_proj", "o_proj"])
