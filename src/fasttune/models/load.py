"""Loading models: through Unsloth for training with fresh LoRA adapters, and for generating on a
GPU; through transformers alone for generating on a CPU, where nothing of Unsloth's would run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fasttune.config import LoraConfig, ModelConfig
from fasttune.errors import FasttuneError
from fasttune.machine import tensor_device, threads
from fasttune.models.activation import fuse_gelu
from fasttune.models.choices import Choices
from fasttune.models.dropout import switch_dropout_off
from fasttune.models.head import decoder
from fasttune.models.heap import give_back_mapped_files, loading
from fasttune.models.lora import Coverage, choose_targets, coverage, linear_names
from fasttune.models.tokenizer import cannot_load, load_tokenizer, require_model, resolve_model
from fasttune.quiet import quiet


def load_base(
    config: ModelConfig, choices: Choices, plain: bool = False, end: str = ""
) -> tuple[Any, Any]:
    """The model without adapters, and its tokenizer with a pad token.

    Its own dropout is off unless `config.dropout` is "config": a run then has the losses of the
    same rows unpacked, and goes on where it was interrupted.

    Args:
        plain: through transformers alone; the weights are the same.

    Raises:
        FasttuneError: Unsloth or transformers cannot load it, or load it otherwise than chosen.
    """
    name = resolve_model(config.name)
    threads()  # what others take is looked at from here on
    tokenizer = load_tokenizer(name, end)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # labels are explicit: padding masks no EOS
    with quiet(), loading():
        try:
            model = (_plain if plain else _through_unsloth)(name, config, choices)
        except FasttuneError:  # Unsloth cannot be imported
            raise
        except Exception as error:  # Unsloth, transformers and safetensors each have their own
            raise cannot_load(name, error) from error
    _require_as_chosen(model, choices)
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
        settings.eos_token_id = tokenizer.eos_token_id
    model.generation_config.max_length = None  # Unsloth's; `max_new_tokens` is what counts
    if config.dropout == "off":
        switch_dropout_off(model)
    fuse_gelu(model)
    if choices.kind == "cpu" and choices.quantized:
        give_back_mapped_files()
    _adapt_threads(model)
    return model, tokenizer


def _adapt_threads(model: Any) -> None:
    """Let the model look before each pass, on a CPU, what other programs leave it."""
    if tensor_device() == "cpu":
        decoder(model).register_forward_pre_hook(threads().adapt)


def _through_unsloth(name: str, config: ModelConfig, choices: Choices) -> Any:
    from fasttune.models.unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=name,
        max_seq_length=config.max_length,
        dtype=getattr(torch, choices.dtype),
        load_in_4bit=choices.quantized,
        trust_remote_code=False,
        use_gradient_checkpointing=choices.unsloth_checkpointing,
        # Unsloth would move the embeddings to RAM where the GPU is nearly full, and the first
        # parameter would no longer tell where the model is.
        offload_embedding=False,
    )
    return model


def nf4(dtype: torch.dtype) -> Any:
    """The quantisation that Unsloth loads with, for transformers: NF4 with double quantisation."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _plain(name: str, config: ModelConfig, choices: Choices) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, choices.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        quantization_config=nf4(dtype) if choices.quantized else None,
        trust_remote_code=False,
    )
    for module in model.modules():
        # bitsandbytes would take a kernel that computes in bf16, which training does not.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _require_as_chosen(model: Any, choices: Choices) -> None:
    """Unsloth says so in a line, and goes on, where it loads in another way than it was told.

    Raises:
        FasttuneError: the model is not quantised although that was chosen, or in another dtype.
    """
    if choices.quantized and not getattr(model, "is_loaded_in_4bit", False):
        raise FasttuneError(
            "the model was loaded without quantising it",
            f"model.quantization=nf4, on {choices.kind}",
            "`fasttune doctor` tells what bitsandbytes lacks; or take model.quantization=none",
        )
    if model.dtype != getattr(torch, choices.dtype):
        raise FasttuneError(
            f"the model was loaded in {str(model.dtype).removeprefix('torch.')}",
            f"{choices.dtype} was chosen, on {choices.kind}",
            "set model.precision to what this model takes here: fp32, bf16 or fp16",
        )


def add_lora(model: Any, lora: LoraConfig, seed: int, choices: Choices) -> tuple[Any, Coverage]:
    """Wrap the model with fresh adapters.

    Raises:
        FasttuneError: a target name matches no layer.
    """
    from fasttune.models.unsloth import FastLanguageModel

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
            use_dora=lora.dora,
            bias="none",
            use_gradient_checkpointing=choices.unsloth_checkpointing,
            random_state=seed,
        )
    if model.peft_config["default"].use_dora != lora.dora:
        raise FasttuneError(
            "Unsloth made other adapters than were asked for",
            f"lora.dora: {str(lora.dora).lower()}",
            "this release of Unsloth is not supported: see fasttune doctor",
        )
    return model, coverage(model, before)


def load_for_generation(
    config: ModelConfig, choices: Choices, adapter: Path | None = None, end: str = ""
) -> tuple[Any, Any]:
    """The model as it was in training, with the adapter if there is one, ready to generate.

    Raises:
        FasttuneError: see `load_base`; or the adapter is damaged or does not fit.
    """
    if adapter is not None:
        require_model(str(adapter))
    plain = choices.kind == "cpu"
    model, tokenizer = load_base(config, replace(choices, checkpointing="off"), plain, end)
    if adapter is not None:
        try:
            with quiet():
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, adapter)
        except Exception as error:  # PEFT, safetensors and torch each have their own
            raise cannot_load(str(adapter), error) from error
    if plain:
        return model.eval(), tokenizer
    from fasttune.models.unsloth import FastLanguageModel

    with quiet():
        FastLanguageModel.for_inference(model)
    return model, tokenizer


def load_folder(folder: Path) -> tuple[Any, Any]:
    """A model folder on this device and its tokenizer, as any program with transformers loads
    them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require_model(str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=False
            ).to(tensor_device())
    except Exception as error:  # transformers, tokenizers and safetensors each have their own
        raise cannot_load(str(folder), error) from error
    _adapt_threads(model)
    return model.eval(), tokenizer
