"""What a run may compute on: memory, arithmetic and bandwidth of known GPUs and of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fasttune.errors import FasttuneError, did_you_mean

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Where a run computes.

    Attributes:
        memory: bytes a run may take.
        matmul: dense matrix products, FLOP/s at the peak in 16 bits (on a CPU: in its own
            precision, measured); None if not known.
        bandwidth: bytes/s of the memory at the peak; None if not known.
        bf16: computes in bf16; otherwise training takes fp16 on a GPU and fp32 on a CPU.
        source: where the figures are from.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory: float
    matmul: float | None = None
    bandwidth: float | None = None
    bf16: bool = True
    source: str = ""


# Dense (not sparse) figures, with accumulation in fp32.
GPUS = {
    "t4": Device("T4", "cuda", 16 * GB, 65e12, 320e9, False, "NVIDIA T4 datasheet"),
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


def this_device() -> Device:
    """The device a run would take here: the first GPU that torch sees, or the CPU.

    The memory is what is free, with what this process already holds.
    """
    import torch

    if not torch.cuda.is_available():
        return Device("CPU", "cpu", available_ram(), bf16=cpu_has_bf16(), source="this machine")
    name = torch.cuda.get_device_name()
    free, total = torch.cuda.mem_get_info()
    known = next(
        (gpu for key, gpu in GPUS.items() if re.search(rf"\b{key}\b", name.lower())),
        Device(name, "cuda", total),
    )
    held = torch.cuda.memory_reserved() + CONTEXT
    return replace(
        known,
        name=name,
        memory=min(total, free + held),
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )


CONTEXT = 0.5 * GB
"""What CUDA itself takes of a GPU as soon as a process touches it, with the libraries' kernels.
An estimate: 0.3 to 0.6 GB are usual; not measured here."""


def available_ram() -> float:
    """Bytes of RAM this process can have: what is free, or what its control group (a container's
    limit, cgroup v2) leaves, with what it holds already."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
        free = min(free, limit - used + int(cache[1] if cache else 0))
    except (OSError, ValueError):  # no control group, or the word "max": no limit
        pass
    return float(free + psutil.Process().memory_info().rss)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bf16, by Linux' list of its features; the loader's own test
    reads the same list. Elsewhere no, which plans for fp32."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return bool(flags and {"amx_bf16", "avx512_bf16", "bf16"} & set(flags[1].split()))


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
