"""Load models: through Unsloth to train, and to generate on a GPU; through transformers alone to
generate on a CPU, where Unsloth would change nothing.

The base model's own dropout is off by default; LoRA has a separate one. microsoft/phi-2 has a
dropout of 0.1 after every block, which gives a packed row another loss than the same row alone, and
a resumed run other losses than an unbroken one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fasttune.config import LoraConfig, ModelConfig
from fasttune.errors import FasttuneError, did_you_mean
from fasttune.machine import tensor_device, this_device, threads
from fasttune.models.architectures import FAMILIES
from fasttune.models.base import read_base, require_finite_weights
from fasttune.models.choices import Choices, decide_for_generation
from fasttune.models.fast.fused import fuse_gelu
from fasttune.models.head import decoder
from fasttune.models.heap import loading, release_mapped_files
from fasttune.models.tokenizer import cannot_load, load_tokenizer, require_model, resolve_model
from fasttune.models.unsloth import import_unsloth
from fasttune.terminal import quiet


def load_base(config: ModelConfig, choices: Choices, tokenizer: Any, plain: bool = False) -> Any:
    """Load a model without adapters.

    Args:
        tokenizer: of `load_tokenizer`; gets a pad token if it has none.
        plain: load with transformers alone; the weights are the same.

    Raises:
        FasttuneError: the model cannot be loaded, or not with this quantization and dtype.
    """
    name = resolve_model(config.name)
    threads()  # starts to measure the processor time of other programs
    if tokenizer.pad_token_id is None:
        # Labels are explicit, so a pad token that is also the EOS hides no EOS from the loss.
        tokenizer.pad_token = tokenizer.eos_token
    with quiet(), loading():
        try:
            from transformers import GenerationConfig

            # `generate` adds beams, stops and penalties of the base's own generation_config.json.
            ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
            loader = _load_plain if plain else _load_with_unsloth
            model = loader(name, config, choices, generation_config=GenerationConfig(**ends))
        except FasttuneError:
            raise
        except Exception as error:  # Unsloth, transformers and safetensors raise their own types
            raise cannot_load(name, error) from error
    require_finite_weights(name)
    _require_as_chosen(model, choices)
    model.generation_config.max_length = None  # set by Unsloth; `max_new_tokens` is what counts
    for setting, token in ends.items():
        setattr(model.config, setting, token)
    if config.dropout == "off":
        switch_dropout_off(model)
    fuse_gelu(model)
    if choices.kind == "cpu" and choices.quantized:
        release_mapped_files()
    _adapt_threads(model)
    return model


def _adapt_threads(model: Any) -> None:
    """On a CPU, adapt the number of threads to other programs' load before each forward pass."""
    if tensor_device() == "cpu":
        decoder(model).register_forward_pre_hook(threads().adapt)


def _load_with_unsloth(name: str, config: ModelConfig, choices: Choices, **more: Any) -> Any:
    FastLanguageModel = import_unsloth()
    model, _ = FastLanguageModel.from_pretrained(
        model_name=name,
        max_seq_length=config.max_length,
        dtype=getattr(torch, choices.dtype),
        load_in_4bit=choices.quantized,
        trust_remote_code=False,
        use_gradient_checkpointing=choices.unsloth_checkpointing,
        # On a nearly full GPU, Unsloth moves the embeddings to RAM; then the first parameter's
        # device is not the model's.
        offload_embedding=False,
        **more,
    )
    return model


def nf4(dtype: torch.dtype) -> Any:
    """The quantization that Unsloth uses, for transformers: NF4 with double quantization."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _load_plain(name: str, config: ModelConfig, choices: Choices, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    dtype, base = getattr(torch, choices.dtype), read_base(name)
    if choices.quantized and (base is None or base.stored == "none"):
        more["quantization_config"] = nf4(dtype)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False, **more)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # of a base that is stored in NF4
            module.compute_dtype = dtype
        # Otherwise bitsandbytes generates with a bf16 kernel that training does not use.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _require_as_chosen(model: Any, choices: Choices) -> None:
    """Refuse a model in another quantization or dtype: Unsloth only prints a line."""
    if choices.quantized and not getattr(model, "is_loaded_in_4bit", False):
        raise FasttuneError(
            "the model was loaded without quantization",
            f"model.quantization=nf4, on {choices.kind}",
            "run `fasttune doctor` to see what bitsandbytes lacks, or set model.quantization=none",
        )
    if model.dtype != getattr(torch, choices.dtype):
        raise FasttuneError(
            f"the model was loaded in {str(model.dtype).removeprefix('torch.')}",
            f"{choices.dtype} was chosen, on {choices.kind}",
            "set model.precision to fp32, bf16 or fp16, whichever this model supports here",
        )


def switch_dropout_off(model: Any) -> None:
    """Set every dropout of a model to 0; adapters added later keep theirs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _dropouts(vars(module)):  # attention reads its dropout from an attribute
            setattr(module, name, 0.0)


def base_dropout(config: Any, chosen: ModelConfig) -> str:
    """Describe the dropout in a model's config.json and whether it is on; "" if there is none."""
    names = ", ".join(f"{name} {value:g}" for name, value in _dropouts(config.to_dict()).items())
    state = "off" if chosen.dropout == "off" else "on"
    return f"dropout of the base model {state} ({names} in its config)" if names else ""


def _dropouts(settings: Mapping[str, Any]) -> dict[str, float]:
    """The dropouts above 0, by name. GPT-NeoX's config also names one for a classifier, which a
    language model does not have."""
    return {
        name: value
        for name, value in settings.items()
        if name.endswith(("dropout", "pdrop"))
        and not name.startswith("classifier")
        and isinstance(value, float)
        and value > 0
    }


def linear_names(model: nn.Module) -> dict[str, int]:
    """Last part of each linear layer's name -> number of such layers, without the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return _count(model, lambda module: isinstance(module, nn.Linear) and module is not head)


def _count(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, int]:
    leaves = (name.rpartition(".")[2] for name, m in model.named_modules() if wanted(m))
    return dict(Counter(leaves))


def choose_targets(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """The wanted target names, or else the architecture's, or else every linear layer.

    Raises:
        FasttuneError: a name matches no linear layer of the model.
    """
    present = linear_names(model)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    known = FAMILIES.get(model_type)
    names = list(wanted or (known.targets if known else present))
    if missing := [name for name in names if name not in present]:
        raise FasttuneError(
            f"LoRA target '{missing[0]}' matches no layer of this {model_type or 'model'}",
            "lora.targets" if wanted else f"the table for '{model_type}'",
            did_you_mean(missing[0], list(present)),
        )
    return names


@dataclass(frozen=True)
class Coverage:
    """Which layers LoRA adapts: name -> number of layers with an adapter, and of linear layers
    without one; the trainable parameters and all, where quantized weights count by their shape."""

    adapted: dict[str, int]
    left_out: dict[str, int]
    parameters: int
    total: int

    def __str__(self) -> str:
        names = " ".join(self.adapted)
        rest = f"; not on {' '.join(self.left_out)}" if self.left_out else ""
        share = 100 * self.parameters / self.total
        return (
            f"LoRA on {names} ({sum(self.adapted.values())} layers{rest}), "
            f"{self.parameters / 1e6:.2f} M of {self.total / 1e6:.1f} M parameters ({share:.2f} %)"
        )


def add_lora(model: Any, lora: LoraConfig, seed: int, choices: Choices) -> tuple[Any, Coverage]:
    """Wrap a model with fresh adapters; a target name that matches no layer is refused."""
    FastLanguageModel = import_unsloth()
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
            "Unsloth ignored a LoRA setting",
            f"lora.dora={str(lora.dora).lower()}",
            "install the release of Unsloth that `fasttune doctor` lists as tested",
        )
    from peft.tuners.lora import LoraLayer

    adapted = _count(model, lambda module: isinstance(module, LoraLayer))
    # On a GPU, Unsloth makes a regular expression of the names, which would be saved.
    model.peft_config["default"].target_modules = set(adapted)
    left_out = Counter(before) - Counter(adapted)
    return model, Coverage(adapted, dict(left_out), *model.get_nb_trainable_parameters())


def load_for_generation(
    config: ModelConfig, adapter: Path | None = None, end: str = ""
) -> tuple[Any, Any, Choices]:
    """Load a model as in training, with its adapter if there is one, ready to generate.

    Args:
        end: see `end_turns_with`.

    Returns:
        The model, its tokenizer, and what was decided for this device.

    Raises:
        FasttuneError: see `load_base`; or the adapter is damaged or does not fit the model.
    """
    if adapter is not None:
        require_model(str(adapter))
    base = read_base(resolve_model(config.name))
    if base is not None and base.stored == "nf4":
        config = replace(config, quantization="nf4")
    choices = decide_for_generation(config, this_device())
    plain = choices.kind == "cpu"
    tokenizer = load_tokenizer(config.name, end)
    model = load_base(config, replace(choices, checkpointing="off"), tokenizer, plain)
    if adapter is not None:
        try:
            with quiet():
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, adapter)
        except Exception as error:  # PEFT, safetensors and torch raise their own types
            raise cannot_load(str(adapter), error) from error
    if plain:
        return model.eval(), tokenizer, choices
    with quiet():
        import_unsloth().for_inference(model)
    return model, tokenizer, choices


def load_folder(folder: Path) -> tuple[Any, Any]:
    """Load a model folder and its tokenizer as any program with transformers does."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(folder))
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=False
            ).to(tensor_device())
    except Exception as error:  # transformers and safetensors raise their own types
        raise cannot_load(str(folder), error) from error
    _adapt_threads(model)
    return model.eval(), tokenizer
