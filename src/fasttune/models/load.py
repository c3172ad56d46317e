"""Loading models through Unsloth: for training with fresh LoRA adapters, and for generating."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.config import DTYPES, LoraConfig, ModelConfig
from fasttune.models.backend import DEVICE, FastLanguageModel

# isort: split
import torch

from fasttune.models.lora import Coverage, choose_targets, coverage, linear_names
from fasttune.models.tokenizer import cannot_load, load_tokenizer, resolve_model
from fasttune.quiet import quiet


@dataclass(frozen=True)
class Precision:
    """The settings "auto" stands for on this machine."""

    quantized: bool
    dtype: torch.dtype


def resolve_precision(config: ModelConfig) -> Precision:
    """4 bits on CUDA and none elsewhere; bf16 where the hardware computes in it, else fp16 on CUDA
    and fp32 on a CPU (where a bf16 that is only emulated is several times slower)."""
    cuda = DEVICE.type == "cuda"
    quantized = cuda if config.quantization == "auto" else config.quantization == "nf4"
    if config.precision != "auto":
        return Precision(quantized, getattr(torch, DTYPES[config.precision]))
    if cuda:
        return Precision(
            quantized, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        )
    from unsloth import is_bfloat16_supported

    return Precision(quantized, torch.bfloat16 if is_bfloat16_supported() else torch.float32)


def load_base(config: ModelConfig, gradient_checkpointing: str | bool = False) -> tuple[Any, Any]:
    """The model without adapters, and its tokenizer with a pad token.

    Raises:
        FasttuneError: transformers cannot load it.
    """
    name = resolve_model(config.name)
    tokenizer = load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels are explicit: padding masks no EOS
    precision = resolve_precision(config)
    try:
        with quiet():
            model, _ = FastLanguageModel.from_pretrained(
                model_name=name,
                max_seq_length=config.max_length,
                dtype=precision.dtype,
                load_in_4bit=precision.quantized,
                use_gradient_checkpointing=gradient_checkpointing,
            )
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
        settings.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def add_lora(
    model: Any, lora: LoraConfig, seed: int, gradient_checkpointing: str | bool
) -> tuple[Any, Coverage]:
    """Wrap the model with fresh adapters.

    Raises:
        FasttuneError: a target name matches no layer.
    """
    before = linear_names(model)
    targets = choose_targets(model, lora.targets)
    with quiet():
        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            use_rslora=lora.rslora,
            bias="none",
            use_gradient_checkpointing=gradient_checkpointing,
            random_state=seed,
        )
    return model, coverage(model, before)


def load_for_generation(config: ModelConfig, adapter: Path | None = None) -> tuple[Any, Any]:
    """The model as it was in training, with the adapter if there is one, ready to generate."""
    model, tokenizer = load_base(config)
    if adapter is not None:
        from peft import PeftModel

        with quiet():
            model = PeftModel.from_pretrained(model, adapter)
    with quiet():
        FastLanguageModel.for_inference(model)
    return model, tokenizer
