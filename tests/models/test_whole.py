"""Damaged model and adapter folders, without a library that loads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fasttune.errors import FasttuneError
from fasttune.models.whole import CHUNK, INDEX, require_finite, require_whole, tensors_of

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 4), dtype=np.float16)


@pytest.fixture
def folder(tmp_path) -> Path:
    save_file({"a": A, "none": B}, tmp_path / "one.safetensors", {"format": "pt"})
    save_file({"c": A.astype(np.int8)}, tmp_path / "two.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"model_type": "llama"}')
    places = {"a": "one.safetensors", "none": "one.safetensors", "c": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    save_file({"lora_A": A}, tmp_path / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "more": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    return tmp_path


def write(data: bytes | str):
    return lambda f: f.write_bytes(data.encode() if isinstance(data, str) else data)


def header(change):
    """The file with its header's text changed, of the right length."""

    def write(file: Path) -> None:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        new = change(data[8 : 8 + length].decode()).encode()
        file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])

    return write


def without(key: str):
    def write(file: Path) -> None:
        file.write_text(
            json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key})
        )

    return write


def other(**values: object):
    return lambda f: f.write_text(json.dumps(json.loads(f.read_text()) | values))


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


WEIGHTS, INCOMPLETE = "one.safetensors", "not a complete safetensors file"
DAMAGE = {
    "settings that are empty": ("config.json", write(""), "is empty"),
    "settings that are cut": ("tokenizer.json", write('{"model": {"voc'), "is no JSON"),
    "settings that are a list": ("tokenizer_config.json", write("[]"), "Expected `object`"),
    "settings not in UTF-8": ("config.json", write(b'{"a": "\xe9"}'), "is not UTF-8 at byte 7"),
    "settings that are nested": ("config.json", write('{"a":' * 99_999), "is no JSON"),
    "settings that are a folder": ("config.json", directory, ": Is a directory"),
    "an index without places": (INDEX, write("{}"), "weight_map: Expected `object`"),
    "an index of numbers": (INDEX, other(weight_map={"a": 1}), "weight_map: Expected `str`"),
    "an index of what is missing": ("two.safetensors", Path.unlink, "which is missing"),
    "a tensor less": (
        INDEX, other(weight_map={"x": WEIGHTS}), "lacks x, which model.safetensors.index.json"),
    "weights that are empty": (WEIGHTS, write(b""), "file: header too small"),
    "weights that are text": (WEIGHTS, write("version https://git-lfs"), INCOMPLETE),
    "weights that are a web page": (WEIGHTS, write("<html>" * 99), INCOMPLETE),
    "weights that are cut": (
        WEIGHTS, lambda f: f.write_bytes(f.read_bytes()[:-1]), "not fully covered"),
    "weights with more": (WEIGHTS, lambda f: f.write_bytes(f.read_bytes() + b"x"), INCOMPLETE),
    "a header that is no JSON": (WEIGHTS, header(lambda t: t.replace("{", "[")), "invalid JSON"),
    "a header that is a list": (WEIGHTS, header(lambda t: "[]"), "invalid JSON in header"),
    "a header without a type": (WEIGHTS, header(lambda t: t.replace("dtype", "x")), "missing fi"),
    "another shape": (
        WEIGHTS, header(lambda t: t.replace("[2,3]", "[2,2]")), "invalid shape"),
    "other offsets": (WEIGHTS, header(lambda t: t.replace("[0,24]", "[8,24]")), "invalid offset"),
    "an adapter without a rank": ("adapter_config.json", without("r"), "required field `r`"),
    "an alpha of text": ("adapter_config.json", other(lora_alpha="x"), "at `$.lora_alpha`"),
    "an adapter of no kind": ("adapter_config.json", without("peft_type"), "`peft_type`"),
    **{
        f"{key} {value!r}": ("config.json", other(**{key: value}), f"at `$.{key}")
        for key, value in (
            ("num_hidden_layers", 10**9), ("num_hidden_layers", 0), ("num_hidden_layers", -1),
            ("num_attention_heads", 0), ("num_key_value_heads", 0), ("hidden_size", 10**12),
            ("vocab_size", "x"), ("head_dim", -8), ("rms_norm_eps", math.nan),
            ("partial_rotary_factor", 10**9), ("rope_theta", math.inf),
            ("text_config", {"num_hidden_layers": 10**9}),
        )
    },
    **{
        f"an adapter's {key} {value!r}": (
            "adapter_config.json", other(**{key: value}), f"$.{key}")
        for key, value in (
            ("lora_alpha", math.inf), ("lora_alpha", math.nan), ("lora_alpha", 0), ("r", 0),
            ("target_modules", "(a+)+b"), ("target_modules", ["(a+)+b"]),
            ("exclude_modules", "(a+)+b"), ("layers_pattern", ["(a|a)*b"]),
            ("alpha_pattern", {"(x+x+)+y": 4}), ("rank_pattern", {"q_proj": 0}),
        )
    },
    "a header of 12 GB": (
        "one.safetensors", write((12 * 10**9).to_bytes(8, "little") + b"{}"), "header too large"),
    "an adapter of nothing": ("adapter_model.safetensors", Path.unlink, ""),
    "an adapter that is cut": (
        "adapter_model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:60]), INCOMPLETE),
}  # fmt: skip


def test_whole_folders_pass(folder):
    require_whole(folder)
    assert set(tensors_of(folder / WEIGHTS)) == {"a", "none"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named(kind, folder):
    name, damage, why = DAMAGE[kind]
    damage(folder / name)
    with pytest.raises(FasttuneError) as caught:
        require_whole(folder)
    assert why in caught.value.where and caught.value.hint
    assert str(folder) in caught.value.where


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_nan_or_infinity_is_found(dtype, value, tmp_path):
    file = tmp_path / "one.safetensors"
    kind = {"F16": "<f2", "F64": "<f8"}.get(dtype, "<f4")
    weights = np.full(3 * CHUNK // 2, -65504.0, kind)
    weights[1], weights[-2] = 6e-8, value

    def stored(numbers) -> bytes:
        if dtype == "BF16":
            numbers = (numbers.view("<u4") >> 16).astype("<u2")
        entry = {"dtype": dtype, "shape": [len(numbers)], "data_offsets": [0, numbers.nbytes]}
        text = json.dumps({"w": entry}).encode()
        return len(text).to_bytes(8, "little") + text + numbers.tobytes()

    file.write_bytes(stored(weights[:-2]))
    require_finite(file)
    file.write_bytes(stored(weights))
    with pytest.raises(FasttuneError, match="NaN or infinity") as caught:
        require_finite(file)
    assert caught.value.where == f"{file}: w"


def test_an_adapter_in_a_pickle_is_refused(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FasttuneError, match=r"no adapter_model\.safetensors") as caught:
        require_whole(folder)
    assert "adapter_model.bin: a pickle, which can run code" in caught.value.where


def llama(folder: Path, blocks: int, leave_out: str = "", **config: object) -> Path:
    """A model of two blocks by its config, with the weights of so many."""
    names = [
        f"model.layers.{block}.{part}.{name}.weight"
        for block in range(blocks)
        for part, name in (
            *(("self_attn", f"{x}_proj") for x in "qkvo"),
            *(("mlp", f"{x}_proj") for x in ("gate", "up", "down")),
        )
    ]
    weights = {name: A for name in names if leave_out not in name or not leave_out}
    save_file(weights | {"lm_head.weight": A}, folder / "model.safetensors")
    settings = {"model_type": "llama", "num_hidden_layers": 2, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_weights_of_another_model_are_refused(tmp_path):
    require_whole(llama(tmp_path, 2))
    for blocks, leave_out, why in (
        (1, "", "q_proj of block 1 is missing"),
        (3, "", "3 blocks instead of 2"),
        (2, "1.mlp.up", "up_proj of block 1 is missing"),
    ):
        with pytest.raises(FasttuneError, match="do not match config.json") as caught:
            require_whole(llama(tmp_path, blocks, leave_out))
        assert why in caught.value.where
    for unknown in ({"model_type": "mamba"}, {"quantization_config": {}}):
        require_whole(llama(tmp_path, 1, **unknown))
