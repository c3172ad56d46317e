"""Loading: what the loaders raise, in three lines, and the same model with Unsloth and without."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from fasttune import hub
from fasttune.config import ModelConfig
from fasttune.errors import FasttuneError, reason
from fasttune.models import load
from fasttune.models.tokenizer import cannot_load
from fasttune.models.unsloth import import_unsloth
from tests.conftest import choices_for, load_model

OFFLINE = OfflineModeIsEnabled("Cannot reach https://hub.example: offline mode is enabled.")


class Broken(Exception):
    """As safetensors' error, which is none of the usual ones."""


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LIBRARY, GPU, ARCHITECTURE = "fasttune doctor` checks", "fasttune doctor` says", "causal language"


@pytest.mark.parametrize(
    ("error", "cause", "hint"),
    [
        (
            ValueError(
                "The checkpoint you are trying to load has model type `zamba9` but Transformers "
                "does not recognize this architecture.\nYou can update Transformers with ..."
            ),
            "model type `zamba9`",
            ARCHITECTURE,
        ),
        (
            ValueError("Unrecognized configuration class T5Config for this kind of AutoModel"),
            "T5Config",
            ARCHITECTURE,
        ),
        (
            ValueError("`owner/new` is not supported yet in `transformers==5.17.0`.\nPlease ..."),
            "not supported yet",
            ARCHITECTURE,
        ),
        (
            RuntimeError(
                "Unsloth: Failed to load model. Both AutoConfig and PeftConfig loading failed.\n\n"
                "AutoConfig error: Unrecognized model in m. Should have a `model_type` key\n\n"
                "PeftConfig error: Can't find 'adapter_config.json' at 'm'\n\n"
            ),
            "Unrecognized model in m. Should have a `model_type` key",
            ARCHITECTURE,
        ),
        (RuntimeError("No GPU found. A GPU is needed for quantization."), "No GPU found", GPU),
        (RuntimeError("Found no NVIDIA driver on your system."), "Found no NVIDIA", GPU),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs", GPU),
        (AssertionError("Torch not compiled with CUDA enabled"), "AssertionError: Torch not", GPU),
        (
            NotImplementedError("Unsloth cannot find any torch accelerator? You need a GPU."),
            "Unsloth cannot find any torch accelerator? You need a GPU.",
            GPU,
        ),
        (
            ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)"),
            "requires optimum",
            LIBRARY,
        ),
        (ModuleNotFoundError("No module named 'bitsandbytes'"), "'bitsandbytes'", LIBRARY),
        (ImportError(""), "ImportError", LIBRARY),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "CUDA out of memory. Tried",
            "fasttune plan",
        ),
        (Broken("header too large"), "Broken: header too large", "--traceback"),
        (OSError("Error no file named model.safetensors in no-gpu"), "no file", "local folder"),
        (RuntimeError(""), "RuntimeError", "--traceback"),
        (NotImplementedError(), "NotImplementedError", "--traceback"),
        (RuntimeError("\n \n"), "RuntimeError", "--traceback"),
        (chained(RuntimeError(), ValueError("deeper")), "deeper", "--traceback"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_three_lines_whatever_the_loader_raises(monkeypatch, tmp_path, capfd, error, cause, hint):
    from fasttune.config import ModelConfig, RunConfig
    from fasttune.machine import Device
    from fasttune.models.choices import decide

    def from_pretrained(**_):
        print("==((====))==  Unsloth")
        print("Unsloth: something else", file=sys.stderr)
        raise error

    (tmp_path / "config.json").touch()
    monkeypatch.setattr(import_unsloth(), "from_pretrained", from_pretrained)
    config = RunConfig(model=ModelConfig(name=str(tmp_path)))
    with pytest.raises(FasttuneError) as caught:
        choices = decide(config, Device("CPU", "cpu", 8e9))
        load.load_base(config.model, choices, SimpleNamespace(pad_token_id=0, eos_token_id=0))
    assert caught.value.message == f"cannot load the model '{tmp_path}'"
    assert cause in caught.value.where and hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 3
    assert caught.value.__cause__ is error  # which --traceback shows
    assert capfd.readouterr() == ("", "")


def test_a_config_that_transformers_refuses_is_told_in_three_lines(tmp_path):
    from fasttune.models.tokenizer import load_tokenizer

    config = {"model_type": "llama", "hidden_size": 640, "num_attention_heads": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FasttuneError, match="cannot load the model") as caught:
        load_tokenizer(str(tmp_path))
    assert "not a multiple of the number of attention heads" in caught.value.where
    assert len(str(caught.value).splitlines()) == 3


def test_what_the_hub_would_have_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(hub, "why_offline", lambda: "the Hub cannot be reached")
    combined = RuntimeError("Unsloth: Failed to load model.\n\nAutoConfig error: offline")
    for error in (
        chained(combined, OFFLINE),
        chained(OSError("We couldn't connect"), LocalEntryNotFoundError("not in the cache")),
    ):
        told = cannot_load("owner/name", error)
        assert told.where.startswith("the Hub cannot be reached, and the Hub's cache does not hold")


def test_a_local_folder_is_not_said_to_be_missing_from_the_cache(monkeypatch, tmp_path):
    """Unsloth looks for an adapter on the Hub even where the model is a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    said = (
        "Unsloth: Failed to load model.\n\nAutoConfig error: no model_type\n\nPeftConfig error: x"
    )
    told = cannot_load("own/model", chained(RuntimeError(said), OFFLINE))
    assert told.where == "no model_type"


def test_a_cached_model_that_is_broken_is_not_said_to_be_missing():
    assert cannot_load("owner/name", ValueError("it is broken")).where == "it is broken"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one "), "one"),
        (ValueError("one of these:\n  two\nthree"), "one of these: two"),
        (ValueError(), "ValueError"),
        (chained(ValueError(), OSError("deeper")), "deeper"),
        (chained(ValueError(), OSError()), "ValueError"),
    ],
)
def test_the_reason_is_one_line_and_never_empty(error, said):
    assert reason(error) == said


def test_a_failing_import_of_unsloth_needs_no_message(monkeypatch):
    class Empty:
        def __getattr__(self, name):
            raise NotImplementedError

    monkeypatch.setitem(sys.modules, "unsloth", Empty())
    with pytest.raises(FasttuneError, match="Unsloth cannot be imported") as caught:
        import_unsloth.__wrapped__()
    assert caught.value.where == "NotImplementedError"


@pytest.mark.parametrize(
    ("quantized", "dtype", "said"),
    [
        (False, torch.bfloat16, "without quantization"),
        (True, torch.float16, "the model was loaded in float16"),
    ],
)
def test_a_model_that_is_loaded_otherwise_than_chosen_is_refused(
    quantized, dtype, said, tiny_phi, monkeypatch
):
    """Unsloth prints a line and goes on: without bitsandbytes, or in fp16 where bf16 is missing."""
    model = SimpleNamespace(is_loaded_in_4bit=quantized, dtype=dtype)
    loader = SimpleNamespace(from_pretrained=lambda **_: (model, None))
    monkeypatch.setattr(load, "import_unsloth", lambda: loader)
    config = ModelConfig(name=str(tiny_phi), quantization="nf4", precision="bf16")
    with pytest.raises(FasttuneError, match=said):
        load_model(config, choices_for(config))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["tiny_phi", "tiny_llama"])
def test_transformers_alone_loads_the_same_model(kind, quantization, request):
    """Of a run that was trained through Unsloth, and is asked without it."""
    folder = str(request.getfixturevalue(kind))
    config = ModelConfig(name=folder, quantization=quantization, precision="fp32")
    choices = choices_for(config)
    through, plain = (load_model(config, choices, each)[0].eval() for each in (False, True))
    weights = dict(through.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, weights.pop(name)), name
    assert not weights
    ids = torch.arange(30)[None]
    with torch.inference_mode():
        assert torch.equal(through(input_ids=ids).logits, plain(input_ids=ids).logits)
