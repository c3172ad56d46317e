"""GGUF files in llama.cpp against transformers: the same ids, logits and answers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from fasttune_plugins.gguf.write import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttune.encoding.encode import encode_prompt
from fasttune.exports.chat_template import chat_template_for
from fasttune.formats.chat import ChatFormat
from fasttune.formats.examples import EXAMPLES
from fasttune.plugins.discovery import load_plugins
from tests.conftest import build_sentencepiece_tokenizer, tiny_model

pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
pytest.importorskip("gguf")

from fasttune_plugins.gguf.llamacpp import LlamaCppReader

pytestmark = pytest.mark.slow

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(
        [
            " ",
            "  ",
            " " * 7,
            " " * 33,
            "\t",
            "\t" * 3,
            "\n",
            "\n\n",
            "\r\n",
            "1",
            "23",
            "4567",
            "don't",
        ]
        + [
            "日本の",
            "中国",
            "한국의 ",
            "¿Cuántos",
            "où",
            "ß",
            "ما ",
            "हिन्दी",
            "🥫",
            "<|response|>",
            "'",
            '"',
        ]
        + [
            "<|endoftext|>",
            "#",
            "def f(x):\n    return x",
            "e\u0301",
            "\u3000",
            "\xa0",
            "A",
            "word",
        ]
    ),
    max_size=12,
).map("".join)


def sharpened(model):
    """Fresh weights attend almost evenly, so that a wrong rotation of q and k would not show."""
    for name, weight in model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            weight.data *= 6
    return model


@pytest.fixture(scope="module")
def sharp_phi(tiny_phi, tmp_path_factory, phi2_tokenizer) -> Path:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharp-phi")
    sharpened(AutoModelForCausalLM.from_pretrained(tiny_phi)).save_pretrained(folder)
    phi2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory, phi2_tokenizer) -> Path:
    """Llama with grouped queries, tied embeddings and SmolLM2's splitting of digits."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer.from_str(phi2_tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False),
        ]
    )
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=50304,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=100000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=50256,
        eos_token_id=50256,
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    sharpened(LlamaForCausalLM(config)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, **end).save_pretrained(folder)
    return folder


def qwen_tokenizer(phi2_tokenizer):
    """Phi-2's vocabulary, split as Qwen splits text."""
    from fasttune_plugins.gguf.vocabulary import _QWEN2
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(phi2_tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **end)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 10000.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
PIECES = {"vocab_size": 1408, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KINDS = {
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "mistral": {**PIECES, "sliding_window": 1024},
    "gemma": {**PIECES, "head_dim": 48, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama-llama3": {"rope_parameters": LLAMA3},
    "llama-linear": {"rope_parameters": LINEAR},
    "qwen2-yarn": {"rope_parameters": {**YARN, "rope_theta": 10000.0}},
}


def other_model(kind: str, phi2_tokenizer) -> Path:
    """A tiny model with sharp attention and norms that are not all one."""
    import torch
    from transformers import AutoModelForCausalLM

    architecture = kind.partition("-")[0]
    tokenizer = {
        "qwen2": lambda: qwen_tokenizer(phi2_tokenizer),
        "qwen3": lambda: qwen_tokenizer(phi2_tokenizer),
        "mistral": build_sentencepiece_tokenizer,
        "gemma": lambda: build_sentencepiece_tokenizer(spaced=False),
        "llama": lambda: phi2_tokenizer,
    }[architecture]()
    folder = tiny_model(architecture, tokenizer, seed=2, **KINDS[kind])
    model = sharpened(AutoModelForCausalLM.from_pretrained(folder))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(torch.randn_like(weight) * 0.2)
    written = (folder / "config.json").read_text()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(written)
    return folder


@pytest.fixture(scope="module", params=["phi", "llama", *KINDS])
def model_folder(request, sharp_phi, tiny_llama, phi2_tokenizer) -> Path:
    known = {"phi": sharp_phi, "llama": tiny_llama}
    return known.get(request.param) or other_model(request.param, phi2_tokenizer)


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def reader(model_folder, tokenizer, tmp_path_factory) -> LlamaCppReader:
    chat = ChatFormat(load_plugins().template("reasoning"))
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(model_folder, file, "f32", chat_template_for(chat.template, tokenizer), "tiny")
    return LlamaCppReader(file, chat.template, chat)


def test_prompts_have_the_runs_ids(reader, tokenizer):
    template = load_plugins().template("reasoning")
    for row in EXAMPLES:
        assert reader.prompt_ids(row) == encode_prompt(template, row, tokenizer)


@settings(max_examples=400, deadline=None)
@given(text=TEXT)
def test_any_text_has_the_tokenizers_ids(reader, tokenizer, text):
    if tokenizer.backend_tokenizer.normalizer.__class__.__name__ == "NFC":
        text = unicodedata.normalize("NFC", text)  # llama.cpp takes text as it is
    assert reader.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids


def against_transformers(reader, model_folder, rows=EXAMPLES[:6]):
    """max |logit|, max |difference of logits|, and answers of 32 tokens that are equal."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    largest, worst, equal = 0.0, 0.0, 0
    for row in rows:
        ids = reader.prompt_ids(row)
        batch = torch.tensor([ids])
        with torch.no_grad():
            expected = model(batch).logits[0].numpy()
            answer = model.generate(batch, max_new_tokens=32, do_sample=False, pad_token_id=0)
        logits = reader.logits(ids)
        assert logits.shape == expected.shape and logits.dtype == np.float32
        largest = max(largest, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(logits - expected).max()))
        equal += reader.greedy(ids, 32) == answer[0, len(ids) :].tolist()
    print(
        f"{model_folder.name}: max |logit| {largest:.3g}, max |dlogit| {worst:.2e}, equal {equal}"
    )
    return largest, worst, equal


def test_logits_and_answers_are_those_of_transformers(reader, model_folder):
    largest, worst, equal = against_transformers(reader, model_folder)
    assert largest > 0.5
    gelu = "phi" in model_folder.name or "gemma" in model_folder.name
    assert worst < (3e-3 if gelu else 2e-5) * max(1, largest / 10)
    assert equal == 6


def test_what_differs_in_phi_is_llamacpps_table_of_gelu(reader, model_folder, monkeypatch):
    """llama.cpp looks gelu up in a table from fp16 to fp16; with the same rounding all is equal."""
    if "phi" not in model_folder.name:
        pytest.skip("only Phi has a gelu")
    from transformers.activations import NewGELUActivation

    exact = NewGELUActivation.forward
    monkeypatch.setattr(
        NewGELUActivation, "forward", lambda self, x: exact(self, x.half().float()).half().float()
    )
    _, worst, _ = against_transformers(reader, model_folder)
    assert worst < 2e-4


def test_heads_in_transformers_order_would_show(tiny_llama, tmp_path, monkeypatch):
    from fasttune_plugins.gguf import write

    name, describe, _ = write._ARCHITECTURES["llama"]
    unchanged = (name, describe, write._unchanged)
    monkeypatch.setitem(write._ARCHITECTURES, "llama", unchanged)
    file = tmp_path / "wrong.gguf"
    write_gguf(tiny_llama, file, "f32", None, "wrong")
    wrong = LlamaCppReader(file, load_plugins().template("reasoning"), None)
    _, worst, equal = against_transformers(wrong, tiny_llama, EXAMPLES[:2])
    assert worst > 0.05 and equal < 2


@pytest.mark.parametrize(
    ("quant", "bound"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.2), ("q5_1", 1.0), ("q4_0", 2.0)]
)
def test_rounded_weights_give_logits_nearby(tiny_llama, tmp_path, quant, bound):
    file = tmp_path / f"{quant}.gguf"
    write_gguf(tiny_llama, file, quant, None, quant)
    reader = LlamaCppReader(file, load_plugins().template("reasoning"), None)
    _, worst, _ = against_transformers(reader, tiny_llama, EXAMPLES[:2])
    assert 0 < worst < bound


def test_the_file_names_the_end(reader, tokenizer):
    assert reader.eos_ids() == {tokenizer.eos_token_id}
