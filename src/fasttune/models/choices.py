"""What the device decides about a run, decided once.

`decide` turns settings that say "auto" into a value. The loader, the trainer, the generator and the
planner read that value and never ask for the device's type. It is printed, stands in the manifest,
and can be made for a device that is not here: a T4's choices hold for tensors on a CPU as well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fasttune.config import DTYPES, ModelConfig, RunConfig
from fasttune.errors import FasttuneError
from fasttune.machine import Device, Kind

Checkpointing = Literal["off", "on", "unsloth"]
Attention = Literal["rows", "varlen", "memory_efficient", "mask"]

VARLEN_CAPABILITY = (8, 0)
"""Compute capability from which on Unsloth's variable-length attention runs."""


@dataclass(frozen=True)
class Choices:
    """What stands for "auto" on a device.

    Attributes:
        kind: the device's.
        quantization: of the base model's matrices.
        dtype: torch's name of the dtype in which the base model computes.
        autocast: LoRA's products are cast to `dtype` too, instead of the adapters' fp32. Not on a
            CPU, where our functions do it by themselves.
        loss_scaling: the loss is scaled before the backward pass, since fp16 has no small numbers.
        attention: how the rows of a pack are kept apart. "rows": a causal attention for each;
            "varlen": one kernel that is told their lengths; "memory_efficient": xformers' with a
            block-diagonal causal bias; "mask": one dense mask for all, which is also what remains
            where architecture or kernels do not allow it (`models.fast.fast.FastPath` says so).
        fast_path: norms, and the LoRA layers that read one input, are computed by functions of our
            own where a model allows it; on CUDA Phi's whole layers.
        why_plain: what keeps the LoRA layers PEFT's all the same; empty where nothing does.
        nf4_copy: our functions have NF4 weights dequantised once and for all, beside those in 4
            bits.
        optimizer: transformers' name of it.
        checkpointing: "unsloth" offloads what the blocks begin with.
        side_by_side: how many packs of a step are computed at the same time, each in a thread.
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
        """accelerate's word for the autocast."""
        words = {"bfloat16": "bf16", "float16": "fp16"}
        return words[self.dtype] if self.autocast else "no"

    @property
    def unsloth_checkpointing(self) -> str | bool:
        """The checkpointing as Unsloth's functions take it."""
        words: dict[str, str | bool] = {"on": True, "off": False}
        return words.get(self.checkpointing, self.checkpointing)

    def autocasting(self, device: str) -> Any:
        """The context in which the model runs, for tensors on `device`."""
        import torch

        dtype = getattr(torch, self.dtype)
        return torch.autocast(device, dtype=dtype, enabled=self.autocast)

    def __str__(self) -> str:
        products = "autocast" if self.autocast else "no autocast"
        said = [
            f"{'NF4' if self.quantized else 'unquantised'} in {self.dtype}",
            f"{products} and loss scaling" if self.loss_scaling else products,
            *(["NF4 weights kept dequantised"] if self.nf4_copy else []),
            f"{self.optimizer}",
            f"checkpointing {self.checkpointing}",
            *([f"{self.side_by_side} packs side by side"] if self.side_by_side > 1 else []),
        ]
        return ", ".join(said)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(config: RunConfig, device: Device) -> Choices:
    """The choices of a run on a device.

    4 bits on CUDA and none elsewhere. bf16 where the hardware computes in it, else fp16 on CUDA and
    fp32 on a CPU, where a bf16 that is only emulated is several times slower. AdamW, with states of
    8 bits on CUDA. Checkpointing and the copy of NF4 weights that are still "auto" are those of a
    model that cannot be planned for (`planning.fit.decide_memory` replaces them otherwise):
    Unsloth's on CUDA, none on a CPU; a copy, which exists on a CPU only.

    Raises:
        FasttuneError: the device does not compute in the asked precision.
    """
    cuda = device.kind == "cuda"
    asked, chosen = config.model, config.train
    narrow = "bfloat16" if device.bf16 else "float16" if cuda else "float32"
    dtype = DTYPES.get(asked.precision, narrow)
    if error := _refusal(dtype, device):
        raise error
    nf4 = cuda if asked.quantization == "auto" else asked.quantization == "nf4"
    fast = not cuda if asked.fast_path == "auto" else asked.fast_path == "on"
    why_plain = _why_plain(config, fast)
    copy = nf4 and not cuda and not why_plain and asked.nf4_copy != "off"
    optimizer = "adamw_8bit" if cuda else "adamw_torch"
    by_itself: Checkpointing = "unsloth" if cuda else "off"
    given = chosen.gradient_checkpointing
    checkpointing = by_itself if given == "auto" else given
    return Choices(
        kind=device.kind,
        quantization="nf4" if nf4 else "none",
        dtype=dtype,
        autocast=cuda and dtype != "float32",
        loss_scaling=dtype == "float16",
        attention=_attention(device, dtype),
        fast_path=fast,
        why_plain=why_plain,
        nf4_copy=copy,
        optimizer=optimizer if chosen.optimizer == "auto" else chosen.optimizer,
        checkpointing=checkpointing,
        side_by_side=1 if checkpointing != "off" or nf4 != copy else _side_by_side(config, device),
    )


def decide_for_generation(model: ModelConfig, device: Device) -> Choices:
    """The choices for generating with a model on a device.

    The model may be that of a run from elsewhere, whose precision this device does not compute in:
    then the device's own takes its place.
    """
    if model.precision != "auto" and _refusal(DTYPES[model.precision], device):
        model = replace(model, precision="auto")
    return decide(RunConfig(model=model), device)


def _refusal(dtype: str, device: Device) -> FasttuneError | None:
    if dtype == "float16" and device.kind == "cpu":
        return FasttuneError(
            "fp16 is not for training on a CPU",
            f"model.precision=fp16, on {device.name}",
            "take model.precision=fp32, or bf16 where the CPU computes in it",
        )
    if dtype == "bfloat16" and device.kind == "cuda" and not device.bf16:
        return FasttuneError(
            "the GPU does not compute in bf16",
            f"model.precision=bf16, on {device.name}",
            "take model.precision=fp16 or auto",
        )
    return None


def _why_plain(config: RunConfig, fast: bool) -> str:
    """What of the settings keeps LoRA layers PEFT's own."""
    if not fast:
        asked = config.model.fast_path == "off"
        return "model.fast_path is off" if asked else "on a GPU model.fast_path is off by itself"
    if config.lora.dropout:
        return "layers that draw a dropout of their own share no product"
    return "DoRA" if config.lora.dora else ""


def _side_by_side(config: RunConfig, device: Device) -> int:
    """How many packs are computed at a time where blocks keep their activations, and weights are
    not dequantised for each pass: two, on a CPU with a core for each. Each row of a batch is to fit
    into memory with the others, so two packs of half its size do.

    One where random numbers are drawn, since two threads would share them out anew each time.
    """
    chosen = config.train
    random = config.lora.dropout or config.model.dropout != "off" or chosen.neftune_noise_alpha
    able = device.kind == "cpu" and device.cores > 1 and chosen.packing and not random
    return 2 if able and chosen.batch_size > 1 else 1


def _attention(device: Device, dtype: str) -> Attention:
    """The kernels of a GPU take 16 bits."""
    if device.kind == "cpu":
        return "rows"
    if dtype == "float32":
        return "mask"
    # A GPU that is named by its memory alone is taken to be a recent one.
    recent = device.capability is None or device.capability >= VARLEN_CAPABILITY
    return "varlen" if recent else "memory_efficient"
