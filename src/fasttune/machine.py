"""This machine: what a run may compute on here, and what it was computed with.

Only this module asks torch whether there is a GPU. What follows from the answer is decided in
`models.choices`.
"""

from __future__ import annotations

import platform
import re
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fasttune import processes

GB = 10**9

Kind = Literal["cuda", "cpu"]

CONTEXT = 0.5 * GB
"""What CUDA itself takes of a GPU as soon as a process touches it, with the libraries' kernels.
An estimate: 0.3 to 0.6 GB are usual; not measured here."""


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
        capability: CUDA's compute capability; None on a CPU, and where it is not known.
        total: bytes of a GPU's whole memory, of which `memory` may be what others left; None where
            it is not known.
        processes: how many processes of the run have such a device each.
    """

    name: str
    kind: Kind
    memory: float
    matmul: float | None = None
    bandwidth: float | None = None
    bf16: bool = True
    source: str = ""
    capability: tuple[int, int] | None = None
    total: float | None = None
    processes: int = 1


def tensor_device() -> Kind:
    """torch's name of where tensors are computed with here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def this_device() -> Device:
    """The device a run would take here: this process's GPU, which is the first that torch sees
    where there is one process, or the CPU.

    The memory is what is free, with what this process already holds: of a GPU the allocator's and
    the context, as a plan counts them. Processes on one CPU have equal parts of it.
    """
    if tensor_device() == "cpu":
        return Device(
            "CPU",
            "cpu",
            available_ram() / processes.local_count(),
            bf16=cpu_has_bf16(),
            source="this machine",
            processes=processes.count(),
        )
    import torch

    free, total = torch.cuda.mem_get_info()
    return Device(
        torch.cuda.get_device_name(),
        "cuda",
        min(total, free + torch.cuda.memory_reserved() + CONTEXT),
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        source="this machine",
        capability=torch.cuda.get_device_capability(),
        total=total,
        processes=processes.count(),
    )


PACKAGES = (
    "fasttune",
    "unsloth",
    "trl",
    "transformers",
    "peft",
    "torch",
    "bitsandbytes",
    "datasets",
)


def versions() -> dict[str, str]:
    """The versions of Python and the packages that shape a run."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


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


def device_name() -> str:
    """What the run computes on."""
    import torch

    if tensor_device() == "cuda":
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory() -> int:
    """Peak memory of this process in bytes, of what a plan counts (`planning.cost.Memory.peak`): of
    the GPU all that torch's allocator reserved, and `CONTEXT`, of which the allocator does not
    know; on a CPU what was resident in RAM."""
    if tensor_device() == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved() + CONTEXT)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage's peak begins with that of the parent process
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
