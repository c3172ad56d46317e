"""This machine: its device, memory, versions and threads. Only this module asks torch for a GPU."""

from __future__ import annotations

import logging
import os
import platform
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fasttune import processes
from fasttune.errors import FasttuneError

log = logging.getLogger(__name__)

GB = 10**9

Kind = Literal["cuda", "cpu"]

CONTEXT = 0.5 * GB
"""GPU memory that CUDA and the libraries' kernels use in every process. An estimate: 0.3 to 0.6 GB
are usual."""


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Attributes:
        memory: bytes that a run can use.
        matmul: peak FLOP/s of dense matrix products in 16 bits (on a CPU measured, in the
            precision that it trains in); None if unknown.
        bandwidth: peak bytes/s of the memory; None if unknown.
        bf16: supports bf16; otherwise training uses fp16 on a GPU and fp32 on a CPU.
        source: where the figures come from.
        capability: CUDA's compute capability; None on a CPU or if unknown.
        total: bytes of a GPU's whole memory, of which other programs may use some; None if unknown.
        processes: number of processes of the run, each with such a device.
        cores: of a CPU, the number of threads of this process.
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
    cores: int = 1


PACKAGES = "fasttune", "unsloth", "trl", "transformers", "peft", "torch", "bitsandbytes", "datasets"
"""Their versions affect a run."""


def tensor_device() -> Kind:
    """torch's name of the device that this process computes on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


DRIVER = Path("/proc/driver/nvidia/version")
"""Describes the NVIDIA driver while it is loaded."""


def gpu_problem() -> FasttuneError | None:
    """Why the NVIDIA GPU of this machine cannot be used, or None. A GPU that is hidden by
    CUDA_VISIBLE_DEVICES is no problem: the CPU is used."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    if tensor_device() == "cuda":
        major, minor = torch.cuda.get_device_capability()
        built = " ".join(torch.cuda.get_arch_list())
        kernels = [
            (kind, int(number[:-1]), int(number[-1]))
            for kind, number in re.findall(r"(sm|compute)_(\d+)", built)
        ]
        # A kernel runs on later GPUs of its major version; PTX (compute_*) on all later ones.
        if not kernels or any(
            (kind == "compute" and (first, second) <= (major, minor))
            or (first == major and second <= minor)
            for kind, first, second in kernels
        ):
            return None
        return FasttuneError(
            "torch has no kernels for this GPU",
            f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}; torch "
            f"{torch.__version__} has {built}",
            "install a build of torch for this GPU, or set CUDA_VISIBLE_DEVICES= to use the CPU",
        )
    try:
        driver = re.search(r"\b(\d+)\.\d[\d.]*\b", DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    if torch.version.cuda is None:
        fix = "install a build of torch with CUDA"
    elif driver and int(driver[1]) < 580 and torch.version.cuda.startswith("13"):
        fix = "update the driver to 580 or newer, or install a build of torch for CUDA 12"
    else:
        fix = "reinstall torch in a build that fits the driver"
    return FasttuneError(
        "an NVIDIA driver is loaded, but torch cannot use it",
        f"driver {driver[0] if driver else 'of unknown version'}, torch {torch.__version__}",
        f"{fix}; or set CUDA_VISIBLE_DEVICES= to use the CPU",
    )


def this_device() -> Device:
    """The device that a run would use here, with the memory that is free or that this process uses.
    Processes on one CPU share its memory equally."""
    if problem := gpu_problem():
        raise problem
    if tensor_device() == "cpu":
        return Device(
            "CPU",
            "cpu",
            available_ram() / processes.local_count(),
            bf16=cpu_has_bf16(),
            source="this machine",
            processes=processes.count(),
            cores=threads().most,
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


def versions() -> dict[str, str]:
    """The versions of Python and of PACKAGES."""
    installed = {package: version_of(package) or "not installed" for package in PACKAGES}
    return {"python": platform.python_version(), **installed}


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def available_ram() -> float:
    """Bytes of RAM that this process can use or uses already, within the limit of its control group
    (cgroup v2, as in a container)."""
    import psutil

    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.M)
        free = min(free, limit - used + int(cached[1] if cached else 0))
    except (OSError, ValueError):  # no control group, or "max", which is no limit
        pass
    return float(free + psutil.Process().memory_info().rss)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies in bf16, according to /proc/cpuinfo."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return bool(flags and {"amx_bf16", "avx512_bf16", "bf16"} & set(flags[1].split()))


def device_name() -> str:
    """The name of this device, for people."""
    import torch

    if tensor_device() == "cuda":
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory() -> int:
    """Peak memory of this process in bytes, as `planning.cost.Memory.peak` counts it."""
    if tensor_device() == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved() + CONTEXT)
    peak = re.search(r"^VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(), re.M)
    if peak is not None:
        return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # or the parent's peak


class Threads:
    """Gives torch as many threads on a CPU as other programs leave cores, at most `most`. A number
    that you set, by a variable of `SETTLED` or by torch.set_num_threads, stays.

    Threads of a matrix product spin while they wait for each other, on cores that the slowest one
    needs: if another program uses one of two cores, two threads are several times slower than one.
    """

    SETTLED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    PAUSE = 0.5
    """Minimum seconds between two measurements: the kernel counts in hundredths."""

    def __init__(self) -> None:
        import torch

        self._get, self._set = torch.get_num_threads, torch.set_num_threads
        self.most = self._now = self._get()
        settled = any(os.environ.get(name) for name in self.SETTLED)
        self._off = self.most == 1 or settled or tensor_device() == "cuda"
        self._logged = False
        self._times = _worked()

    def adapt(self, *_: object) -> None:
        """Follow the load since the last measurement, before each pass of a model."""
        if self._off or time.monotonic() - self._times[0] < self.PAUSE:
            return
        if self._get() != self._now:
            self._off = True
            return
        before, self._times = self._times, _worked()
        seconds, all_, own = (new - old for new, old in zip(self._times, before, strict=True))
        others, cores = max(0.0, all_ - own) / seconds, len(_cores())
        count = max(1, min(self.most, round(cores - others)))
        if count != self._now:
            log.log(
                logging.DEBUG if self._logged else logging.INFO,
                f"other programs take {others:.1f} of {cores} cores: {count} instead of "
                f"{self._now} threads",
            )
            self._logged = True
            self._take(count)

    @contextmanager
    def settled(self, count: int | None = None) -> Iterator[int]:
        """Keep one number of threads, and yield it: `count`, or what other programs leave now.
        Another number rounds bf16 products differently, and a resumed training must equal an
        unbroken one bit for bit."""
        if count is None:
            self.adapt()
        elif not self._off:
            self._take(min(count, self.most))
        before, self._off = self._off, True
        settled = self._get()
        try:
            yield settled
        finally:
            self._off = before
            self._set(settled)

    def _take(self, count: int) -> None:
        self._now = count
        self._set(count)


@cache
def threads() -> Threads:
    """The threads of this process; the first call starts to measure what other programs use."""
    return Threads()


def _worked() -> tuple[float, float, float]:
    """Seconds: now, CPU time of all programs on this process's cores, and CPU time of this process.
    Programs with a lower priority give way, so they do not count, unless this is one of them."""
    import psutil

    names = ("user", "system", "nice")[: 3 if os.nice(0) > 0 else 2]
    times = psutil.cpu_times(percpu=True)
    all_ = sum(getattr(times[core], name) for core in _cores() for name in names)
    return time.monotonic(), all_, time.process_time()


def _cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))
