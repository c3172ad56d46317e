"""GGUF files, read back with the gguf package: metadata, vocabulary and tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from fasttune_plugins.gguf import exporter as plugin  # noqa: E402
from fasttune_plugins.gguf.vocabulary import pre_tokenizer_name  # noqa: E402
from fasttune_plugins.gguf.write import K_QUANTS, QUANTS, write_gguf  # noqa: E402
from fasttune_plugins.ollama import modelfile  # noqa: E402

from fasttune import FasttuneError  # noqa: E402
from tests.conftest import build_sentencepiece_tokenizer, tiny_model  # noqa: E402

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@pytest.fixture(scope="module")
def tiny_llama(phi2_tokenizer) -> Path:
    return tiny_model(
        "llama",
        phi2_tokenizer,
        seed=1,
        dtype="bfloat16",
        vocab_size=50295,
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=2,
        rope_theta=12345.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )


def read(folder: Path, tmp_path: Path, quant: str, chat: str | None = None):
    file = tmp_path / "model.gguf"
    write_gguf(folder, file, quant, chat, "a name")
    # A memmap is a class in Python, which is asked at each of a million slices.
    with patch("numpy.memmap", lambda path, mode: np.fromfile(path, np.uint8)):
        reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def values(tensor) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.fixture(scope="module")
def phi(phi2_tokenizer) -> Path:
    """With Phi-2's whole vocabulary."""
    return tiny_model("phi", phi2_tokenizer, dtype="float16")


def test_phi_metadata(phi, tmp_path):
    fields, tensors = read(phi, tmp_path, "f32", "{{ messages }}")
    expected = {
        "general.architecture": "phi2",
        "general.name": "a name",
        "general.file_type": 0,
        "phi2.context_length": 2048,
        "phi2.embedding_length": 320,
        "phi2.feed_forward_length": 1280,
        "phi2.block_count": 2,
        "phi2.attention.head_count": 4,
        "phi2.attention.head_count_kv": 4,
        "phi2.rope.dimension_count": 32,
        "phi2.vocab_size": 51200,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 50256,
        "tokenizer.ggml.bos_token_id": 50256,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {key: fields[key] for key in expected} == expected
    assert fields["phi2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert len(tensors) == 5 + 2 * 14


def test_phi_vocabulary(phi, tmp_path, phi2_tokenizer):
    fields, _ = read(phi, tmp_path, "q8_0")
    assert "tokenizer.chat_template" not in fields
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == 51200
    assert tokens[:50257] == phi2_tokenizer.convert_ids_to_tokens(range(50257))
    assert tokens[50257] == " " * 31 and tokens[50286] == "  " and tokens[50294] == "\t\t"
    assert set(kinds[:50256]) == {NORMAL} and kinds[50256] == CONTROL
    assert set(kinds[50257:50295]) == {USER_DEFINED} and len(kinds[50257:50295]) == 38
    assert set(kinds[50295:]) == {UNUSED} and len(set(tokens)) == 51200
    merges = fields["tokenizer.ggml.merges"]
    assert len(merges) == 50000 and merges[0] == "Ġ t"


def test_phi_tensors_are_equal_bit_by_bit(tiny_phi, tmp_path):
    _, tensors = read(tiny_phi, tmp_path, "f32")
    expected = weights(tiny_phi)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.final_layernorm.bias": "output_norm.bias",
        "lm_head.bias": "output.bias",
        "lm_head.weight": "output.weight",
        "model.layers.1.self_attn.k_proj.weight": "blk.1.attn_k.weight",
        "model.layers.1.self_attn.q_proj.bias": "blk.1.attn_q.bias",
        "model.layers.0.self_attn.dense.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.fc1.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.fc2.weight": "blk.0.ffn_down.weight",
        "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    }
    assert len(tensors) == len(expected)
    for theirs, ours in names.items():
        assert np.array_equal(values(tensors[ours]), expected[theirs]), ours


def test_llama_rows_of_q_and_k_are_interleaved(tiny_llama, tmp_path):
    fields, tensors = read(tiny_llama, tmp_path, "f32")
    expected = weights(tiny_llama)
    assert "output.weight" not in tensors  # tied
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 16
    assert fields["llama.rope.freq_base"] == 12345.0
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    for letter, heads in (("q", 6), ("k", 2)):
        theirs = expected[f"model.layers.1.self_attn.{letter}_proj.weight"]
        ours = values(tensors[f"blk.1.attn_{letter}.weight"])
        for head in range(heads):
            for i in range(8):  # row i turns with row i + 8
                assert np.array_equal(ours[16 * head + 2 * i], theirs[16 * head + i])
                assert np.array_equal(ours[16 * head + 2 * i + 1], theirs[16 * head + i + 8])
    same = expected["model.layers.1.self_attn.v_proj.weight"]
    assert np.array_equal(values(tensors["blk.1.attn_v.weight"]), same)


@pytest.mark.parametrize(
    ("quant", "kind", "bound"),
    [
        ("f16", "F16", 2**-11),
        ("bf16", "BF16", 0.0),  # the weights are bf16 already
        ("q8_0", "Q8_0", 0.5 / 127),
        ("q5_0", "Q5_0", 1 / 16),
        ("q4_1", "Q4_1", 1 / 15),
    ],
)
def test_rounded_types_stay_within_their_bound(tiny_llama, tmp_path, quant, kind, bound):
    """The bound is relative to the largest weight of a block of 32."""
    _, tensors = read(tiny_llama, tmp_path, quant)
    expected = weights(tiny_llama)["model.layers.0.mlp.down_proj.weight"]
    tensor = tensors["blk.0.ffn_down.weight"]
    assert tensor.tensor_type.name == kind
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    embedding = "Q8_0" if quant.startswith(("q4", "q5")) else kind
    assert tensors["token_embd.weight"].tensor_type.name == embedding
    blocks = expected.reshape(-1, 32)
    error = np.abs(values(tensor).reshape(-1, 32) - blocks)
    # The scale of a block is itself rounded to fp16.
    largest = np.abs(blocks).max(1, keepdims=True) * (1 + 2**-10) + 1e-7
    assert (error <= bound * largest + largest * 2**-10 * (bound > 0)).all()
    assert bound == 0.0 or error.max() > 0


def test_rows_that_fill_no_block_are_f16(tiny_llama, tmp_path):
    assert 160 % 32 == 0 and 96 % 256  # so that q8_0 fits and 256 would not
    from fasttune_plugins.gguf.write import _kind

    assert _kind("blk.0.ffn_up.weight", (4, 33), "q8_0").name == "F16"
    assert _kind("blk.0.ffn_up.weight", (4, 64), "q8_0").name == "Q8_0"


def copied(folder: Path, tmp_path: Path, name: str, change) -> Path:
    """A copy of a model folder with one JSON file changed."""
    target = tmp_path / "changed"
    tmp_path.mkdir(exist_ok=True)
    shutil.copytree(folder, target)
    value = json.loads((target / name).read_text(encoding="utf-8"))
    change(value)
    (target / name).write_text(json.dumps(value), encoding="utf-8")
    return target


def bos_first(tokenizer):
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [50256], "tokens": ["<|endoftext|>"]}
        },
    }


def test_bos_is_added_where_the_tokenizer_adds_it(tiny_llama, tmp_path):
    folder = copied(tiny_llama, tmp_path, "tokenizer.json", bos_first)
    fields, _ = read(folder, tmp_path, "q8_0")
    assert fields["tokenizer.ggml.add_bos_token"] is True


PIECES = {"vocab_size": 1408, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tiny_mistral() -> Path:
    return tiny_model("mistral", build_sentencepiece_tokenizer(), sliding_window=512, **PIECES)


def test_pieces_have_their_kinds_and_scores(tiny_mistral, tmp_path):
    fields, _ = read(tiny_mistral, tmp_path, "f32")
    assert fields["general.architecture"] == "llama" and fields["llama.context_length"] == 512
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert fields["tokenizer.ggml.add_bos_token"] is True
    tokens, kinds, scores = (
        fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores")
    )
    assert kinds[:3] == [UNKNOWN, CONTROL, CONTROL] and kinds[3:259] == [BYTE] * 256
    assert tokens[3 + 10] == "<0x0A>"
    known = build_sentencepiece_tokenizer()
    assert {*kinds[259 : len(known)]} == {NORMAL} and {*kinds[len(known) :]} == {UNUSED}
    ranked = [tokens.index(piece) for piece in ("▁t", "▁a", "he", "in", "re")]
    assert ranked == sorted(ranked)
    assert [scores[at] for at in ranked] == sorted((scores[at] for at in ranked), reverse=True)


def test_pieces_that_llamacpp_would_merge_otherwise_are_refused(tiny_mistral, tmp_path):
    def two_ranks(tokenizer):
        merges = tokenizer["model"]["merges"]
        pieces = ["".join(pair) for pair in merges]
        at = next(at for at, piece in enumerate(pieces) if pieces.count(piece) > 1)
        merges.append(merges.pop(at))

    for number, (change, said) in enumerate(
        (
            (lambda t: t["model"]["merges"].pop(), "never merges"),
            (two_ranks, "at two ranks"),
            (lambda t: t["normalizer"]["normalizers"].append({"type": "NFC"}), "treats spaces"),
        )
    ):
        folder = copied(tiny_mistral, tmp_path / str(number), "tokenizer.json", change)
        with pytest.raises(FasttuneError, match=said):
            write_gguf(folder, tmp_path / "out.gguf", "f32", None, "x")


def test_qwen_has_norms_per_head_and_no_other_order(tmp_path):
    folder = tiny_model("qwen3", seed=4, head_dim=64, tie_word_embeddings=True)
    fields, tensors = read(folder, tmp_path, "f32")
    assert fields["general.architecture"] == "qwen3"
    assert fields["qwen3.attention.key_length"] == fields["qwen3.rope.dimension_count"] == 64
    expected = weights(folder)
    for theirs, ours in (("q_proj", "attn_q"), ("k_norm", "attn_k_norm")):
        same = expected[f"model.layers.1.self_attn.{theirs}.weight"]
        assert np.array_equal(values(tensors[f"blk.1.{ours}.weight"]), same)
    assert "output.weight" not in tensors


def test_gemmas_norms_begin_at_one(tmp_path):
    tokenizer = build_sentencepiece_tokenizer(spaced=False)
    folder = tiny_model("gemma", tokenizer, head_dim=48, num_key_value_heads=1, **PIECES)
    fields, tensors = read(folder, tmp_path, "f32")
    assert fields["general.architecture"] == "gemma"
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    for theirs, ours in (
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
    ):
        assert np.array_equal(values(tensors[ours]), weights(folder)[theirs] + 1)


@pytest.mark.slow
def test_scaled_rotations(tiny_llama, tmp_path):
    scaled = {"factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 10000.0}

    def fields_of(rope):
        folder = copied(tiny_llama, tmp_path / rope["rope_type"], "config.json",
                        lambda c: c.update(rope_parameters=rope))  # fmt: skip
        return read(folder, tmp_path, "f32")

    fields, _ = fields_of({**scaled, "rope_type": "yarn"})
    assert fields["llama.rope.scaling.type"] == "yarn"
    assert fields["llama.rope.scaling.factor"] == 4.0
    assert fields["llama.rope.scaling.original_context_length"] == 512
    fields, tensors = fields_of({**scaled, "rope_type": "linear"})
    assert fields["llama.rope.scaling.type"] == "linear" and "rope_freqs.weight" not in tensors
    ends = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    fields, tensors = fields_of({**scaled, **ends, "rope_type": "llama3"})
    assert "llama.rope.scaling.type" not in fields
    factors = values(tensors["rope_freqs.weight"])
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {**scaled, **ends, "rope_type": "llama3"}
    config = LlamaConfig(hidden_size=96, num_attention_heads=6, rope_parameters=rope)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    assert np.allclose(plain / factors, inverse.numpy(), rtol=1e-6)
    assert factors[0] == 1 and factors[-1] == 4


REFUSED = {
    "architecture 'opt'": ("config.json", lambda c: c.update(model_type="opt")),
    "rotary embeddings of type 'longrope'": (
        "config.json",
        lambda c: c.update(rope_parameters={"rope_type": "longrope"}),
    ),
    "yarn with settings of its own": (
        "config.json",
        lambda c: c.update(rope_scaling={"type": "yarn", "factor": 2.0, "beta_fast": 16}),
    ),
    "sliding window in some": ("config.json", lambda c: c.update(use_sliding_window=True)),
    "splits text by": ("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Whitespace"})),
    "normalises text": ("tokenizer.json", lambda t: t.update(normalizer={"type": "NFC"})),
    "treats spaces as": ("tokenizer.json", lambda t: t["model"].update(byte_fallback=True)),
    "takes in white space": ("tokenizer.json", lambda t: t["added_tokens"][0].update(lstrip=True)),
    "names no EOS": ("tokenizer_config.json", lambda t: t.pop("eos_token")),
    "the model 50000 rows": ("config.json", lambda c: c.update(vocab_size=50000)),
    "no place for the tensor": ("config.json", lambda c: c.update(num_hidden_layers=1)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_llamacpp_would_read_otherwise_is_refused(tiny_llama, tmp_path, reason):
    name, change = REFUSED[reason]
    target = tmp_path / "out" / "model.gguf"
    with pytest.raises(FasttuneError) as caught:
        write_gguf(copied(tiny_llama, tmp_path, name, change), target, "f16", None, "x")
    assert reason in caught.value.message
    assert not list(target.parent.glob("*"))


def test_pre_tokenizers_are_told_apart():
    from fasttune_plugins.gguf.vocabulary import _LLAMA3
    from tokenizers import Regex, pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    llama3 = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def name(pre, **model):
        state = json.loads(pre.__getstate__())
        return pre_tokenizer_name({"model": model, "pre_tokenizer": state}, Path("x"))

    assert name(plain) == "gpt-2"
    assert name(pre_tokenizers.Sequence([digits, plain])) == "smollm"
    assert name(pre_tokenizers.Sequence([llama3, rest]), ignore_merges=True) == "llama-bpe"
    for pre in (
        pre_tokenizers.Sequence([llama3, rest]),  # without ignore_merges
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), plain]),
        pre_tokenizers.Sequence([digits, rest]),
    ):
        with pytest.raises(FasttuneError, match="splits text by"):
            name(pre)


def test_unknown_types_and_a_missing_program_are_refused(tiny_llama, tmp_path, monkeypatch):
    with pytest.raises(FasttuneError, match="no GGUF type 'q9'"):
        write_gguf(tiny_llama, tmp_path / "x.gguf", "q9", None, "x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FasttuneError, match="not on the PATH") as caught:
        write_gguf(tiny_llama, tmp_path / "x.gguf", "q4_k_m", None, "x")
    assert "llama-quantize" in caught.value.message


@pytest.mark.slow
def test_k_quants_are_made_by_llama_quantize(tiny_llama, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nif [ "$3" = Q2_K ]; then echo broken >&2; exit 3; fi\ncp "$1" "$2"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    target = tmp_path / "out" / "model.gguf"
    target.parent.mkdir()
    write_gguf(tiny_llama, target, "q4_k_m", None, "x")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}
    assert kinds == {"BF16", "F32"}  # what it was given: the weights are bf16
    assert [file.name for file in target.parent.iterdir()] == ["model.gguf"]
    with pytest.raises(FasttuneError, match="failed with status 3") as caught:
        write_gguf(tiny_llama, target, "q2_k", None, "x")
    assert caught.value.where == "broken"
    assert [file.name for file in target.parent.iterdir()] == ["model.gguf"]


def test_the_plugin_offers_what_can_be_written():
    assert plugin.Gguf.options["quant"] == (*QUANTS, *K_QUANTS)


def test_a_modelfile_is_exact():
    text = modelfile("m.gguf", "{{ .System }}\n", 'Say "hi".\nNow', ["<|x|>", 'a"b'], {"seed": "1"})
    assert text == (
        "FROM ./m.gguf\n"
        'TEMPLATE """{{ .System }}\n"""\n'
        'SYSTEM """Say "hi".\nNow"""\n'
        "PARAMETER seed 1\n"
        'PARAMETER stop "<|x|>"\n'
        'PARAMETER stop """a"b"""\n'
    )


@pytest.mark.parametrize("system", ["", 'ends in "', 'three """ quotes', "wide\u3000space", '"x'])
def test_a_system_text_that_cannot_be_quoted_is_left_to_the_template(system):
    assert "SYSTEM" not in modelfile("m.gguf", "t", system, [], {})
