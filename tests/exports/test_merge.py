"""Merging on disk, held against PEFT's own merge and against what bitsandbytes computes with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fasttune.errors import FasttuneError
from fasttune.exports import merge
from fasttune.models.tokenizer import saved_tokenizer
from tests.conftest import tiny_model

VOCABULARY = 512
EOS = 7
PHI_TARGETS = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
LLAMA_TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
IDS = torch.tensor([[50, 100, 500, 7, 42, 51]])


@pytest.fixture(scope="module")
def small_phi() -> Path:
    """A Phi with a vocabulary that suits copying, in fp32."""
    return tiny_model("phi", vocab_size=VOCABULARY, intermediate_size=640)


@pytest.fixture(scope="module")
def tiny_llama() -> Path:
    """A Llama of hidden 64 with tied embeddings, in fp32."""
    return tiny_model(
        "llama",
        seed=1,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        tie_word_embeddings=True,
        eos_token_id=EOS - 1,  # not the tokenizer's
    )


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of a few words: only its EOS matters here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "word": 1, "<eos>": EOS}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def load(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits.float()


def make_adapter(base: Path, folder: Path, tokenizer, **settings):
    """An adapter whose every tensor differs from its first value; returns the PEFT model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    settings = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(load(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def reshard(base: Path, target: Path, size: str) -> Path:
    model = load(base)
    model.save_pretrained(target, max_shard_size=size)
    return target


def merged(base: Path, adapter: Path, target: Path, **options) -> Path:
    target.mkdir()
    merge.write_merged(str(base), adapter, target, **options)
    return target


def rewrite_adapter(adapter: Path, change) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": PHI_TARGETS},
        {"target_modules": PHI_TARGETS, "use_rslora": True},
        {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "dense"], "bias": "lora_only"},
        {"target_modules": ["fc2"], "bias": "all"},
        {"target_modules": ["q_proj", "fc2"], "alpha_pattern": {"layers.1.mlp.fc2": 64}},
        {"target_modules": ["q_proj", "fc2"], "rank_pattern": {"fc2": 7}},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["lora", "rslora", "modules_to_save", "bias", "all biases", "alpha", "rank", "embedding"],
)
def test_equals_pefts_own_merge(small_phi, tmp_path, tokenizer, settings):
    model = make_adapter(small_phi, tmp_path / "adapter", tokenizer, **settings)
    adapted = logits(model)
    ours = logits(load(merged(small_phi, tmp_path / "adapter", tmp_path / "merged")))
    theirs = logits(model.merge_and_unload())
    assert (theirs - logits(load(small_phi))).abs().max() > 1e-2  # the adapter matters
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - adapted).abs().max() < 1e-5


def test_shards_layout_and_untouched_tensors_are_kept(small_phi, tmp_path, tokenizer):
    base = reshard(small_phi, tmp_path / "base", "2MB")
    model = make_adapter(base, tmp_path / "adapter", tokenizer, target_modules=PHI_TARGETS)
    target = merged(base, tmp_path / "adapter", tmp_path / "merged")
    names = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(names) > 1
    assert names == sorted(file.name for file in target.glob("*.safetensors"))
    assert (target / merge.INDEX).read_bytes() == (base / merge.INDEX).read_bytes()
    old, new = (merge.stored_tensors(merge.shards(folder)) for folder in (base, target))
    places = [
        {name: (t.file.name, t.dtype, t.shape, t.start, t.end) for name, t in side.items()}
        for side in (old, new)
    ]
    assert places[0] == places[1]
    changed = {name for name in old if not torch.equal(tensor(old, name), tensor(new, name))}
    assert changed == {
        f"{name.removesuffix('.base_layer.weight')}.weight".removeprefix("base_model.model.")
        for name, _ in model.named_parameters()
        if name.endswith(".base_layer.weight")
    }
    assert (logits(load(target)) - logits(model)).abs().max() < 1e-5


def tensor(tensors, name: str) -> torch.Tensor:
    return load_file(tensors[name].file)[name]


def test_a_bf16_base_gets_the_fp32_sum_rounded_once(small_phi, tmp_path, tokenizer):
    base = tmp_path / "base"
    load(small_phi).bfloat16().save_pretrained(base)
    adapter = tmp_path / "adapter"
    make_adapter(small_phi, adapter, tokenizer, target_modules=PHI_TARGETS, r=8, lora_alpha=4)
    new = load_file(merged(base, adapter, tmp_path / "merged") / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, weight in load_file(base / "model.safetensors").items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        expected = weight
        if f"{key}A.weight" in factors:
            update = 4 / 8 * (factors[f"{key}B.weight"] @ factors[f"{key}A.weight"])
            expected = (weight.float() + update).to(torch.bfloat16)
        assert new[name].dtype == torch.bfloat16
        assert torch.equal(new[name], expected), name


def test_llama_keeps_tied_embeddings_and_takes_the_tokenizers_eos(tiny_llama, tmp_path, tokenizer):
    adapter = tmp_path / "adapter"
    model = make_adapter(tiny_llama, adapter, tokenizer, target_modules=LLAMA_TARGETS)
    own = tiny_llama / "generation_config.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"repetition_penalty": 1.1}))
    target = merged(tiny_llama, adapter, tmp_path / "merged", chat_template="{{ messages }}")
    assert "lm_head.weight" not in load_file(target / "model.safetensors")
    assert (logits(load(target)) - logits(model)).abs().max() < 1e-5
    assert json.loads((target / "config.json").read_text())["eos_token_id"] == EOS
    generation = json.loads((target / "generation_config.json").read_text())
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert generation == {"do_sample": False, "eos_token_id": EOS, **ends}
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    loaded = load(target)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_the_bases_own_chat_template_does_not_go_along(tiny_llama, tmp_path, tokenizer):
    make_adapter(tiny_llama, tmp_path / "adapter", tokenizer, target_modules=["q_proj"])
    (tmp_path / "adapter" / "chat_template.jinja").write_text("{{ 'another format' }}")
    target = merged(tiny_llama, tmp_path / "adapter", tmp_path / "merged")
    assert saved_tokenizer(target).chat_template is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k.replace("layers.1", "layers.9"): v for k, v in t.items()}, "does not hold"),
        (
            lambda t: {k: v for k, v in t.items() if "layers.0.self_attn.q_proj.lora_B" not in k},
            "half",
        ),
        (lambda t: {k: v[:, :-1] if "lora_A" in k else v for k, v in t.items()}, "in the adapter"),
        (
            lambda t: t | {"base_model.model.x.lora_magnitude_vector": torch.ones(3)},
            "does not hold",
        ),
        (lambda t: t | {"base_model.model.surplus.weight": torch.ones(3)}, "does not hold"),
    ],
    ids=["no base", "half a pair", "shape", "dora", "surplus"],
)
def test_an_adapter_that_does_not_fit_is_refused(tiny_llama, tmp_path, tokenizer, change, message):
    make_adapter(tiny_llama, tmp_path / "adapter", tokenizer, target_modules=["q_proj"])
    rewrite_adapter(tmp_path / "adapter", lambda t: {k: v.clone() for k, v in change(t).items()})
    with pytest.raises(FasttuneError, match=message):
        merged(tiny_llama, tmp_path / "adapter", tmp_path / "merged")


def test_one_of_two_tied_embeddings_cannot_be_changed(tiny_llama, tmp_path, tokenizer):
    adapter = tmp_path / "adapter"
    make_adapter(
        tiny_llama, adapter, tokenizer, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    with pytest.raises(FasttuneError, match="tied embeddings"):
        merged(tiny_llama, adapter, tmp_path / "merged")


def test_a_base_without_safetensors_is_refused(tmp_path):
    with pytest.raises(FasttuneError, match="no safetensors"):
        merge.shards(tmp_path)


def test_a_quantised_base_is_refused(tiny_llama, tmp_path, tokenizer):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(FasttuneError, match=r"stored quantised \(gptq\)"):
        merged(base, tmp_path, tmp_path / "merged")


def load_nf4(base: Path):
    """The base as a run loads it: NF4 with double quantisation, computing in fp32."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    ).eval()


@pytest.mark.parametrize("kind", ["phi", "llama"])
def test_dequantized_is_what_the_quantised_model_computes_with(
    kind, small_phi, tiny_llama, tmp_path, tokenizer
):
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel

    base = small_phi if kind == "phi" else tiny_llama
    targets = ["q_proj", "fc1"] if kind == "phi" else ["q_proj"]  # the others are rounded too
    adapter = tmp_path / "adapter"
    make_adapter(base, adapter, tokenizer, target_modules=targets)
    quantised = load_nf4(base)
    packed = {
        f"{name}.weight" for name, m in quantised.named_modules() if isinstance(m, Linear4bit)
    }
    assert merge.linear_weights(base) == packed
    model = PeftModel.from_pretrained(quantised, adapter).eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.train()  # on a CPU, bitsandbytes computes in fp32 in training only
    seen = logits(model)
    rounded = merged(base, adapter, tmp_path / "rounded", dequantize="float32")
    original = merged(base, adapter, tmp_path / "original")
    assert (logits(load(rounded)) - seen).abs().max() < 1e-5
    assert (logits(load(original)) - seen).abs().max() > 1e-3

    # The same of a base that is stored in NF4, whichever weights are asked for.
    load_nf4(base).save_pretrained(tmp_path / "stored", max_shard_size="100KB")
    unpacked = merged(tmp_path / "stored", adapter, tmp_path / "unpacked")
    assert (unpacked / merge.INDEX).is_file() and len(merge.shards(unpacked)) > 1
    assert "quantization_config" not in json.loads((unpacked / "config.json").read_text())
    assert (logits(load(unpacked)) - seen).abs().max() < 1e-5
