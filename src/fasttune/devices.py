"""Memory, arithmetic and bandwidth of known GPUs, and the arithmetic of this CPU."""

from __future__ import annotations

import re
from dataclasses import replace

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.machine import GB, Device

# Dense (not sparse) figures, with accumulation in fp32.
GPUS = {
    "t4": Device("T4", "cuda", 16 * GB, 65e12, 320e9, False, "NVIDIA T4 datasheet", (7, 5)),
    "a10g": Device("A10G", "cuda", 24 * GB, 70e12, 600e9, source="NVIDIA A10G datasheet"),
    "3090": Device(
        "RTX 3090", "cuda", 24 * GB, 71e12, 936e9, source="NVIDIA Ampere GA102 whitepaper"
    ),
    "4090": Device("RTX 4090", "cuda", 24 * GB, 165e12, 1008e9, source="NVIDIA Ada whitepaper"),
    "a100": Device("A100 40GB", "cuda", 40 * GB, 312e12, 1555e9, source="NVIDIA A100 datasheet"),
    "a100-80gb": Device(
        "A100 80GB SXM", "cuda", 80 * GB, 312e12, 2039e9, source="NVIDIA A100 datasheet"
    ),
    "h100": Device("H100 SXM", "cuda", 80 * GB, 989e12, 3350e9, source="NVIDIA H100 datasheet"),
}


def find_device(name: str) -> Device:
    """A GPU by its name or by its memory, as 16GB.

    Raises:
        FasttuneError: it is neither.
    """
    word = re.sub(r"^(nvidia|geforce|rtx|tesla)+", "", re.sub(r"[\s_]", "", name.lower()))
    if word in GPUS:
        return GPUS[word]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)g(i?)b?", word)
    if size and float(size[1]) > 0:
        return Device(
            f"GPU of {size[1]} G{size[2]}B", "cuda", float(size[1]) * (2**30 if size[2] else GB)
        )
    raise FasttuneError(
        f"no GPU is called '{name}'",
        "--gpu",
        f"{did_you_mean(word, [*GPUS])}; or give its memory, as 16GB",
    )


def with_figures(device: Device) -> Device:
    """The device with the datasheet's figures, if it is a GPU that is known by its name."""
    if device.kind == "cpu":
        return device
    known = next(
        (gpu for key, gpu in GPUS.items() if re.search(rf"\b{key}\b", device.name.lower())), None
    )
    if known is None:
        return device
    return replace(device, matmul=known.matmul, bandwidth=known.bandwidth, source=known.source)


def measured_matmul(bf16: bool, size: int = 1024) -> float:
    """FLOP/s of a square matrix product on this CPU: the best of five, about 0.1 s."""
    import time

    import torch

    matrix = torch.ones(size, size, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
