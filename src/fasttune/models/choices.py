"""How a run computes on a device: precision, kernels and their sizes, optimizer, checkpointing.

`decide` replaces each "auto" in the settings by a value. Loader, trainer, generator and planner
read these values and never ask for the device's type. They can be decided for another device: tests
run a T4's choices on a CPU's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fasttune.config import DTYPES, PRECISIONS, ModelConfig, RunConfig
from fasttune.errors import FasttuneError
from fasttune.machine import Device, Kind

Checkpointing = Literal["off", "on", "unsloth"]
Attention = Literal["rows", "varlen", "memory_efficient", "mask"]

VARLEN_CAPABILITY = (8, 0)
"""Minimum compute capability for Unsloth's variable-length attention."""

LOGIT_ROWS = 256
"""Rows of logits that exist at one time: 256 x 51200 in fp32 are 52 MB."""

CACHED_ROWS = 8
"""Of these on a CPU: 8 x 51200 in fp32 are 1.6 MB, which fit into its second cache."""

SHORT = 512
"""Up to this length, a row's attention in bf16 on a CPU multiplies whole matrices and keeps its
scores. It takes 0.4 times as long as scaled_dot_product_attention (230 tokens, 9 heads); the demo
model's gradients differ from those in fp32 by 4.4 % instead of 3.8 %."""


@dataclass(frozen=True)
class Choices:
    """Settings with every "auto" decided for a device.

    Attributes:
        kind: the device's kind.
        quantization: of the base model's matrices.
        dtype: torch's name of the dtype in which the base model computes.
        autocast: LoRA's products are also in `dtype`, instead of the adapters' fp32. False on a
            CPU, where fasttune's own functions cast.
        loss_scaling: scale the loss before the backward pass, because fp16 has no small numbers.
        attention: how the rows of a pack are kept apart. "rows": a causal attention for each row;
            "varlen": one kernel that gets the rows' lengths; "memory_efficient": xformers' kernel
            with a block-diagonal causal bias; "mask": one dense mask for the pack, which is also
            the fallback if the model or a kernel does not support the choice (see `FastPath`).
        fast_path: compute norms, and LoRA layers that read the same input, with fasttune's own
            functions if the model allows it; on CUDA, Phi's whole layers.
        why_plain: why the LoRA layers stay PEFT's; "" if they do not.
        nf4_copy: keep a dequantized copy of NF4 weights for fasttune's functions.
        optimizer: its name in transformers.
        checkpointing: "unsloth" also offloads the inputs of the blocks.
        side_by_side: number of packs of a step computed at the same time, each in a thread.
    """

    kind: Kind
    quantization: Literal["nf4", "none"]
    dtype: str
    autocast: bool
    loss_scaling: bool
    attention: Attention
    fast_path: bool
    why_plain: str
    nf4_copy: bool
    optimizer: str
    checkpointing: Checkpointing
    side_by_side: int = 1

    @property
    def quantized(self) -> bool:
        return self.quantization == "nf4"

    @property
    def mixed_precision(self) -> str:
        """The autocast dtype by its name in accelerate."""
        return PRECISIONS[self.dtype] if self.autocast else "no"

    @property
    def unsloth_checkpointing(self) -> str | bool:
        """The checkpointing as an argument of Unsloth's functions."""
        return self.checkpointing if self.checkpointing == "unsloth" else self.checkpointing == "on"

    def autocasting(self, device: str) -> Any:
        """The context in which the model computes on a device's tensors."""
        import torch

        dtype = getattr(torch, self.dtype)
        return torch.autocast(device, dtype=dtype, enabled=self.autocast)

    def __str__(self) -> str:
        parts = [
            f"{'NF4' if self.quantized else 'unquantised'} in {self.dtype}",
            ("autocast" if self.autocast else "no autocast")
            + (" and loss scaling" if self.loss_scaling else ""),
            "NF4 weights kept dequantised" if self.nf4_copy else "",
            self.optimizer,
            f"checkpointing {self.checkpointing}",
            f"{self.side_by_side} packs side by side" if self.side_by_side > 1 else "",
        ]
        return ", ".join(filter(None, parts))


def decide(config: RunConfig, device: Device) -> Choices:
    """Decide how a run computes on a device.

    The defaults: 4 bits on CUDA only. bf16 if the hardware supports it, else fp16 on CUDA and fp32
    on a CPU, where emulated bf16 is several times slower. AdamW, on CUDA with states in 8 bits.
    For a model that the planner knows, `planning.fit.decide_memory` has put checkpointing and the
    copy of NF4 weights into the config; for another one, Unsloth's checkpointing on CUDA and none
    on a CPU, and a copy on a CPU.

    Raises:
        FasttuneError: the device does not support the precision in the settings.
    """
    require_precision(config.model, device)
    cuda, model, train = device.kind == "cuda", config.model, config.train
    dtype = "bfloat16" if device.bf16 else "float16" if cuda else "float32"
    dtype = DTYPES.get(model.precision, dtype)
    nf4 = cuda if model.quantization == "auto" else model.quantization == "nf4"
    default_optimizer = "adamw_8bit" if cuda else "adamw_torch"
    why_plain = _why_plain(config, device)
    copy = nf4 and not cuda and not why_plain and model.nf4_copy != "off"
    checkpointing: Checkpointing = "unsloth" if cuda else "off"
    if train.gradient_checkpointing != "auto":
        checkpointing = train.gradient_checkpointing
    # Two packs of half a batch's size need no more memory than the batch. Two threads would draw
    # random numbers in another order in each run.
    random = config.lora.dropout or model.dropout != "off" or train.neftune_noise_alpha
    paired = train.packing and train.batch_size > 1 and not cuda and device.cores > 1
    paired = paired and checkpointing == "off" and nf4 == copy and not random
    return Choices(
        kind=device.kind,
        quantization="nf4" if nf4 else "none",
        dtype=dtype,
        autocast=cuda and dtype != "float32",
        loss_scaling=dtype == "float16",
        attention=_attention(device, dtype),
        fast_path=_fast_path(model, device),
        why_plain=why_plain,
        nf4_copy=copy,
        optimizer=default_optimizer if train.optimizer == "auto" else train.optimizer,
        checkpointing=checkpointing,
        side_by_side=2 if paired else 1,
    )


def decide_for_generation(model: ModelConfig, device: Device) -> Choices:
    """Decide how to generate with a model, in the device's default precision if it does not support
    the one that a run was trained in."""
    try:
        require_precision(model, device)
    except FasttuneError:
        model = replace(model, precision="auto")
    return decide(RunConfig(model=model), device)


def require_precision(model: ModelConfig, device: Device) -> None:
    """Refuse a precision in the settings that the device does not support."""
    if model.precision == "fp16" and device.kind == "cpu":
        raise FasttuneError(
            "fp16 is not supported on a CPU",
            f"model.precision=fp16, on {device.name}",
            "set model.precision=auto or fp32",
        )
    if model.precision == "bf16" and device.kind == "cuda" and not device.bf16:
        raise FasttuneError(
            "the GPU does not support bf16",
            f"model.precision=bf16, on {device.name}",
            "set model.precision=auto or fp16",
        )


def _fast_path(model: ModelConfig, device: Device) -> bool:
    return device.kind == "cpu" if model.fast_path == "auto" else model.fast_path == "on"


def _why_plain(config: RunConfig, device: Device) -> str:
    """Which settings disable the fused LoRA layers; "" if none does."""
    if not _fast_path(config.model, device):
        default = " by default on a GPU" if config.model.fast_path == "auto" else ""
        return f"model.fast_path is off{default}"
    if config.lora.dropout:
        return "lora.dropout gives each layer another input"
    return "DoRA" if config.lora.dora else ""


def _attention(device: Device, dtype: str) -> Attention:
    if device.kind == "cpu":
        return "rows"
    if dtype == "float32":
        return "mask"  # the kernels for a GPU need 16 bits
    # A GPU given by its memory alone counts as a recent one.
    recent = device.capability is None or device.capability >= VARLEN_CAPABILITY
    return "varlen" if recent else "memory_efficient"
