"""What a base's files say before it is loaded, and whether they are still those of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from fasttune.config import ModelConfig
from fasttune.errors import FasttuneError
from fasttune.models.base import Base, digests, positions, require_same_base, stored_as
from fasttune.models.tokenizer import load_tokenizer
from fasttune.runs import Run
from tests.conftest import SMALL_VOCABULARY, build_small_tokenizer, listening

pytestmark = pytest.mark.slow

READS = {"max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (READS, 4096),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        (READS | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        (READS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        (READS | {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        # Qwen 2.5 with YaRN, and a config whose positions are counted after scaling.
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 32768}}, 131072),
        # Llama 3.1 and Phi-3 count them after scaling.
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
          "original_max_position_embeddings": 8192}}, 131072),
        (READS | {"rope_scaling": {"type": "linear", "factor": float("inf")}}, 4096),
        (READS | {"rope_scaling": {"type": "linear", "factor": "x"}}, 4096),
    ],
)  # fmt: skip
def test_the_tokens_that_a_model_reads(config, tokens):
    assert positions(config) == tokens


def test_what_is_stored_decides_the_quantization():
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
    assert stored_as(None) == stored_as({}) == "none"
    assert stored_as({"load_in_8bit": True, "quant_method": "bitsandbytes"}) == "8 bits"
    base = Base.of("base", {"quantization_config": nf4})
    for asked in ("auto", "nf4"):
        assert base.trainable(ModelConfig(quantization=asked)).quantization == "nf4"
    assert Base.of("base", {}).trainable(ModelConfig()) == ModelConfig()


def test_positions_bound_the_rows():
    base = Base.of("base", {"text_config": {"max_position_embeddings": 64}})
    assert base.trainable(ModelConfig(max_length=64)).max_length == 64
    with pytest.raises(FasttuneError, match="is 65, and the model reads 64 tokens") as caught:
        base.trainable(ModelConfig(max_length=65))
    assert "set model.max_length=64" in caught.value.hint


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model's files, without weights that load."""
    build_small_tokenizer().save_pretrained(tmp_path / "base")
    settings = {"model_type": "llama", "vocab_size": SMALL_VOCABULARY}
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(bytes(999))
    return tmp_path / "base"


def test_ids_without_embeddings_are_refused(folder):
    assert load_tokenizer(str(folder)).eos_token_id < SMALL_VOCABULARY
    larger = load_tokenizer(str(folder))
    larger.add_tokens(["<image>"], special_tokens=True)  # as Gemma 3's, of models that see images
    larger.save_pretrained(folder)
    load_tokenizer(str(folder))
    with pytest.raises(FasttuneError, match="ids up to 4096, and the model has 4096 embeddings"):
        load_tokenizer(str(folder), "<image>")  # no EOS that the model cannot write
    larger.add_tokens(["<tool_call>", "</tool_call>"])
    larger.save_pretrained(folder)
    with pytest.raises(FasttuneError, match="ids up to 4098, and the model has 4096 embeddings"):
        load_tokenizer(str(folder))


def test_a_changed_base_is_refused(folder, tmp_path):
    run = Run(Path(shutil.copytree(Path(__file__).parents[1] / "old_run", tmp_path / "old")))
    run.update({"model": str(folder)})
    require_same_base(run)  # of an earlier version, which kept no digests
    run.update({"base": digests(str(folder))})
    assert {"config.json", "pytorch_model.bin", "tokenizer.json"} <= run.manifest["base"].keys()
    (folder / "generation_config.json").write_text("{}")  # changes no answer
    os.utime(folder / "pytorch_model.bin")
    require_same_base(run)
    (folder / "pytorch_model.bin").write_bytes(bytes(998) + b"1")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(FasttuneError, match="the base has changed since run 'old'") as caught:
        require_same_base(run)
    changed = "pytorch_model.bin, tokenizer_config.json"
    assert caught.value.where == f"{folder}: {changed}" and "--force" in caught.value.hint
    with listening() as said:
        require_same_base(run, force=True)
    assert said == [f"warning: the base has changed since run 'old' was trained on it: {changed}"]
