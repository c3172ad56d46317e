"""What a run was computed with: versions, device, memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

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


def device_name() -> str:
    """What the run computes on."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory() -> int:
    """Peak memory in bytes: allocated on the GPU, or resident in RAM."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage's peak begins with that of the parent process
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere
