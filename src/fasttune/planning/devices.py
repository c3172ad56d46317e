"""Memory, arithmetic and bandwidth of known GPUs, and the arithmetic of this CPU."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.machine import GB, Device

# TFLOP/s: dense products in 16 bits with accumulation in fp32, which training computes in.
# GeForce cards and the A10G accumulate in fp32 at half the rate of fp16.
#
# The driver's name is a pattern for `torch.cuda.get_device_name`, without maker and family. It must
# match the whole name: an RTX 3090 Ti, a laptop's 4090 and a slice of an A100 (MIG) are other
# devices. Only the memory identifies a bare "A100". With 80 GB it gets the faster card's bandwidth,
# so that the time stays a lower bound.
# fmt: off
_CARDS = (
    # key, name, GB, TFLOP/s, GB/s, compute capability, the driver's name
    ("t4",             "T4",             16, 65,      320, (7, 5), "t4"),
    ("v100",           "V100 SXM2",      16, 125,     900, (7, 0), "v100-sxm2-16gb"),
    ("v100-32gb",      "V100 SXM2 32GB", 32, 125,     900, (7, 0), "v100-sxm2-32gb"),
    ("v100-pcie",      "V100 PCIe",      16, 112,     900, (7, 0), "v100-pcie-(16|32)gb"),
    ("l4",             "L4",             24, 121,     300, (8, 9), "l4"),
    ("a10",            "A10",            24, 125,     600, (8, 6), "a10"),
    ("a10g",           "A10G",           24, 70,      600, (8, 6), "a10g"),
    ("3090",           "RTX 3090",       24, 71,      936, (8, 6), "3090"),
    ("4090",           "RTX 4090",       24, 165.2,  1008, (8, 9), "4090"),
    ("l40s",           "L40S",           48, 362.05,  864, (8, 9), "l40s"),
    ("a100",           "A100 40GB",      40, 312,    1555, (8, 0), "a100(-(sxm4?|pcie)-40gb)?"),
    ("a100-80gb",      "A100 80GB SXM",  80, 312,    2039, (8, 0), "a100(-sxm4?-80gb)?"),
    ("a100-80gb-pcie", "A100 80GB PCIe", 80, 312,    1935, (8, 0), "a100(-pcie-80gb| 80gb pcie)"),
    ("h100",           "H100 SXM",       80, 989,    3350, (9, 0), "h100 80gb hbm3"),
    ("h100-pcie",      "H100 PCIe",      80, 756,    2000, (9, 0), "h100 pcie"),
)
# fmt: on

_SOURCES = {
    "t4": "NVIDIA T4 datasheet: 65 TFLOPS mixed precision; "
    "NVIDIA T4 product brief, table 2: up to 320 GB/s",
    "v100": "NVIDIA V100 datasheet, specifications: tensor performance of NVLink and of PCIe",
    "l4": "NVIDIA L4 datasheet: 242 TFLOPS in FP16 with sparsity, half without",
    "a10": "NVIDIA A10 datasheet: BF16 125 TFLOPS, 250 with sparsity",
    "a10g": "NVIDIA A10G datasheet for AWS (2022-02-17): BF16 70 TFLOPS, 140 with sparsity",
    "3090": "NVIDIA Ampere GA102 whitepaper v2, appendix A (page 44): "
    "peak BF16 tensor TFLOPS with FP32 accumulate 71/142",
    "4090": "NVIDIA Ada whitepaper, appendix A, table 2: "
    "peak BF16 tensor TFLOPS with FP32 accumulate 165.2/330.4",
    "l40s": "NVIDIA L40S datasheet: BF16 362.05 TFLOPS, 733 with sparsity",
    "a100": "NVIDIA A100 datasheet (memory, bandwidth); "
    "NVIDIA A100 whitepaper, peak FP16 tensor TFLOPS with FP32 accumulate: 312/624",
    "h100": "NVIDIA H100 datasheet, specifications: 1,979 (SXM) and 1,513 (PCIe) TFLOPS in BF16 "
    "with sparsity, half without",
}
"""The documents of the figures, by the key's first word."""

GPUS = {
    key: Device(
        name,
        "cuda",
        memory * GB,
        matmul=tflops * 1e12,
        bandwidth=bandwidth * 1e9,
        bf16=capability >= (8, 0),
        source=_SOURCES[key.partition("-")[0]],
        capability=capability,
    )
    for key, name, memory, tflops, bandwidth, capability, _ in _CARDS
}
DRIVER_NAMES = {key: pattern for key, *_, pattern in _CARDS}

SAME_MEMORY = 0.1
"""Allowed relative difference between the memory that CUDA reports and the datasheet's: an A100's
40 GB are 42.3 of 10^9 bytes, an L4's 24 GB are 23.7 after error correction takes its share."""


def find_device(name: str) -> Device:
    """Find a GPU by its key in `GPUS`, by the driver's name for it or by its memory, as 16GB.

    Raises:
        FasttuneError: no GPU matches.
    """
    word = _without_family(re.sub(r"[\s_]", "", name))
    card = GPUS.get(word) or known_card(Device(name, "cuda", 0))
    if card:
        return card
    size = re.fullmatch(r"(\d+(?:\.\d+)?)g(i?)b?", word)
    if size and float(size[1]) > 0:
        memory = float(size[1]) * (2**30 if size[2] else GB)
        return Device(f"GPU of {size[1]} G{size[2]}B", "cuda", memory)
    raise FasttuneError(
        f"no GPU is called '{name}'",
        "--gpu",
        f"{did_you_mean(word, [*GPUS])}; or give its memory, as 16GB",
    )


def with_figures(device: Device) -> Device:
    """Add the datasheet's speed to a GPU that `known_card` recognises."""
    card = known_card(device)
    if card is None:
        return device
    return replace(
        device,
        matmul=card.matmul,
        bandwidth=card.bandwidth,
        source=card.source,
        capability=device.capability or card.capability,
    )


def known_card(device: Device) -> Device | None:
    """Find a GPU's entry in `GPUS` by its name and, where cards share a name, by its memory; None
    unless exactly one matches."""
    if device.kind == "cpu":
        return None
    name = _without_family(device.name).strip()
    cards = [GPUS[key] for key, pattern in DRIVER_NAMES.items() if re.fullmatch(pattern, name)]
    if len(cards) > 1:
        total = device.total or device.memory
        cards = [card for card in cards if abs(total / card.memory - 1) <= SAME_MEMORY]
    return cards[0] if len(cards) == 1 else None


def _without_family(name: str) -> str:
    return re.sub(r"^(nvidia|geforce|rtx|tesla|\s)+", "", name.lower())


def measured_matmul(bf16: bool, size: int = 1024) -> float:
    """Time a square matrix product on this CPU and return its FLOP/s: the best of five, 0.1 s."""
    import torch

    matrix = torch.ones(size, size, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
