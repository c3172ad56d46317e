"""Memory, arithmetic and bandwidth of known GPUs, and the arithmetic of this CPU."""

from __future__ import annotations

import re
from dataclasses import replace

from fasttune.errors import FasttuneError, did_you_mean
from fasttune.machine import GB, Device

# Dense products in 16 bits with accumulation in fp32, FLOP/s: what training computes in. Datasheets
# print twice as much, "with sparsity", and whitepapers give both ("165.2/330.4"). GeForce cards and
# the A10G accumulate in fp32 at half the rate at which they accumulate in fp16.
_AMPERE = (
    "NVIDIA A100 datasheet (memory, bandwidth); "
    "NVIDIA A100 whitepaper, peak FP16 tensor TFLOPS with FP32 accumulate: 312/624"
)
_HOPPER = "NVIDIA H100 datasheet, specifications: {} TFLOPS in BF16 with sparsity, half without"
_VOLTA = "NVIDIA V100 datasheet, specifications: tensor performance"
GPUS = {
    "t4": Device(
        "T4",
        "cuda",
        16 * GB,
        65e12,
        320e9,
        bf16=False,
        source="NVIDIA T4 datasheet: 65 TFLOPS mixed precision; "
        "NVIDIA T4 product brief, table 2: up to 320 GB/s",
        capability=(7, 5),
    ),
    "v100": Device(
        "V100 SXM2", "cuda", 16 * GB, 125e12, 900e9, False, f"{_VOLTA} of NVLink", (7, 0)
    ),
    "v100-32gb": Device(
        "V100 SXM2 32GB", "cuda", 32 * GB, 125e12, 900e9, False, f"{_VOLTA} of NVLink", (7, 0)
    ),
    "v100-pcie": Device(
        "V100 PCIe", "cuda", 16 * GB, 112e12, 900e9, False, f"{_VOLTA} of PCIe", (7, 0)
    ),
    "l4": Device(
        "L4",
        "cuda",
        24 * GB,
        121e12,
        300e9,
        source="NVIDIA L4 datasheet: 242 TFLOPS in FP16 with sparsity, half without",
        capability=(8, 9),
    ),
    "a10": Device(
        "A10",
        "cuda",
        24 * GB,
        125e12,
        600e9,
        source="NVIDIA A10 datasheet: BF16 125 TFLOPS, 250 with sparsity",
        capability=(8, 6),
    ),
    "a10g": Device(
        "A10G",
        "cuda",
        24 * GB,
        70e12,
        600e9,
        source="NVIDIA A10G datasheet for AWS (2022-02-17): BF16 70 TFLOPS, 140 with sparsity",
        capability=(8, 6),
    ),
    "3090": Device(
        "RTX 3090",
        "cuda",
        24 * GB,
        71e12,
        936e9,
        source="NVIDIA Ampere GA102 whitepaper v2, appendix A (page 44): "
        "peak BF16 tensor TFLOPS with FP32 accumulate 71/142",
        capability=(8, 6),
    ),
    "4090": Device(
        "RTX 4090",
        "cuda",
        24 * GB,
        165.2e12,
        1008e9,
        source="NVIDIA Ada whitepaper, appendix A, table 2: "
        "peak BF16 tensor TFLOPS with FP32 accumulate 165.2/330.4",
        capability=(8, 9),
    ),
    "l40s": Device(
        "L40S",
        "cuda",
        48 * GB,
        362.05e12,
        864e9,
        source="NVIDIA L40S datasheet: BF16 362.05 TFLOPS, 733 with sparsity",
        capability=(8, 9),
    ),
    "a100": Device("A100 40GB", "cuda", 40 * GB, 312e12, 1555e9, source=_AMPERE, capability=(8, 0)),
    "a100-80gb": Device(
        "A100 80GB SXM", "cuda", 80 * GB, 312e12, 2039e9, source=_AMPERE, capability=(8, 0)
    ),
    "a100-80gb-pcie": Device(
        "A100 80GB PCIe", "cuda", 80 * GB, 312e12, 1935e9, source=_AMPERE, capability=(8, 0)
    ),
    "h100": Device(
        "H100 SXM",
        "cuda",
        80 * GB,
        989e12,
        3350e9,
        source=_HOPPER.format("1,979"),
        capability=(9, 0),
    ),
    "h100-pcie": Device(
        "H100 PCIe",
        "cuda",
        80 * GB,
        756e12,
        2000e9,
        source=_HOPPER.format("1,513"),
        capability=(9, 0),
    ),
}

NAMES = {
    "t4": "t4",
    "v100": "v100-sxm2-16gb",
    "v100-32gb": "v100-sxm2-32gb",
    "v100-pcie": "v100-pcie-(16|32)gb",
    "l4": "l4",
    "a10": "a10",
    "a10g": "a10g",
    "3090": "3090",
    "4090": "4090",
    "l40s": "l40s",
    "a100": "a100(-(sxm4?|pcie)-40gb)?",
    "a100-80gb": "a100(-sxm4?-80gb)?",
    "a100-80gb-pcie": "a100(-pcie-80gb| 80gb pcie)",
    "h100": "h100 80gb hbm3",
    "h100-pcie": "h100 pcie",
}
"""What the driver calls a card, without maker and family: what `torch.cuda.get_device_name` says. A
name is matched as a whole: an RTX 3090 Ti, a laptop's 4090 and a slice of an A100 (MIG) are other
devices. A bare "A100" is a matter of its memory; with 80 GB it gets the faster card's bandwidth, so
that the bound on the time remains one."""

SAME_MEMORY = 0.1
"""How far the memory that CUDA reports may be from the datasheet's: an A100's 40 GB are 42.3 of
10^9 bytes, an L4's 24 GB are 23.7 without what error correction takes."""


def find_device(name: str) -> Device:
    """A GPU by its key in `GPUS`, by the driver's name for it or by its memory, as 16GB.

    Raises:
        FasttuneError: it is none of them.
    """
    word = _without_family(re.sub(r"[\s_]", "", name))
    card = GPUS.get(word) or known_card(Device(name, "cuda", 0))
    if card:
        return card
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
    """The device with the datasheet's figures, if it is a GPU that is known by its name, and by
    its memory where cards share the name."""
    known = known_card(device)
    if known is None:
        return device
    return replace(
        device,
        matmul=known.matmul,
        bandwidth=known.bandwidth,
        source=known.source,
        capability=device.capability or known.capability,
    )


def known_card(device: Device) -> Device | None:
    """The card of `GPUS` that a device is; None if none or more than one fits."""
    if device.kind == "cpu":
        return None
    name = _without_family(device.name).strip()
    cards = [GPUS[key] for key, pattern in NAMES.items() if re.fullmatch(pattern, name)]
    if len(cards) > 1:
        whole = device.total or device.memory
        cards = [card for card in cards if abs(whole / card.memory - 1) <= SAME_MEMORY]
    return cards[0] if len(cards) == 1 else None


def _without_family(name: str) -> str:
    return re.sub(r"^(nvidia|geforce|rtx|tesla|\s)+", "", name.lower())


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
