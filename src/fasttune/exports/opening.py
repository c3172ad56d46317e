"""Open the transformers models that verification compares: a run's and an export's.

On a CPU both compute in fp32, so that only the weights differ. On CUDA both compute in the dtype
they were loaded in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fasttune.config import ModelConfig
from fasttune.encoding.encode import encode_prompt, eos_id
from fasttune.errors import FasttuneError
from fasttune.exports.chat_template import chat_ids
from fasttune.formats.chat import ChatFormat
from fasttune.formats.row import Row
from fasttune.formats.template import Template
from fasttune.machine import tensor_device
from fasttune.models.tokenizer import saved_tokenizer

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModelReader:
    """A `Reader` of a transformers model.

    Attributes:
        eos: the ids it stops at.
    """

    model: Any
    prompt_ids: Callable[[Row], list[int]]
    eos: set[int]

    def eos_ids(self) -> set[int]:
        return self.eos

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            logits = self.model(input_ids=self._batch(ids), use_cache=False).logits[0]
        array: np.ndarray = logits.float().cpu().numpy()
        return array

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """Answer with the model's own generation configuration, as other programs do."""
        batch = self._batch(ids)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=count
            )
        return list(output[0, len(ids) :].tolist())

    def _batch(self, ids: Sequence[int]) -> Any:
        return torch.tensor([list(ids)], device=next(self.model.parameters()).device)


def open_run_model(config: ModelConfig, adapter: Path, template: Template) -> ModelReader:
    """Load the base and the adapter of a run, with the template's prompts."""
    from fasttune.models.load import load_for_generation

    model, *_ = load_for_generation(config, adapter, template.end)
    tokenizer = saved_tokenizer(adapter)

    def prompt_ids(row: Row) -> list[int]:
        return encode_prompt(template, row, tokenizer)

    return ModelReader(_sharp(model), prompt_ids, {eos_id(tokenizer)})


def open_merged_model(folder: Path, template: Template, chat: ChatFormat | None) -> ModelReader:
    """Load a model folder as transformers does.

    If tokenizer, config and generation config do not name the same EOS, the set of ids is empty:
    programs disagree on where to stop.

    Args:
        chat: the format of the folder's chat template, which makes the prompts; None tokenizes the
            text of `template`.
    """
    from fasttune.models.load import load_folder

    model, tokenizer = load_folder(folder)

    def prompt_ids(row: Row) -> list[int]:
        if chat is None:
            return encode_prompt(template, row, tokenizer)
        try:
            return chat_ids(chat, row, tokenizer)
        except FasttuneError:
            return []  # a prompt that cannot be made is not the run's

    named = [each.eos_token_id for each in (tokenizer, model.config, model.generation_config)]
    ids = [{each} if isinstance(each, int) else {*(each or ())} for each in named]
    eos = ids[0] if ids[0] == ids[1] == ids[2] else set()
    return ModelReader(_sharp(model), prompt_ids, eos)


def _sharp(model: Any) -> Any:
    """On a CPU, compute in fp32 with the same weights.

    bitsandbytes' NF4 kernel for inference on CPUs computes in bf16, which training does not: it is
    off by 0.5 % of a matrix product. So NF4 weights are dequantised once.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    if tensor_device() != "cpu":
        return model
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = torch.nn.Linear(1, 1)
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                plain.weight = torch.nn.Parameter(weight, requires_grad=False)
                plain.bias = layer.bias
                setattr(parent, name, plain)
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
    return model
