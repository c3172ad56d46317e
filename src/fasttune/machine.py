"""This machine: what a run may compute on here, and what it was computed with.

Only this module asks torch whether there is a GPU. What follows from the answer is decided in
`models.choices`.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fasttune import processes

log = logging.getLogger(__name__)

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
        cores: of a CPU, those that this process has threads for.
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


class Threads:
    """torch's threads on a CPU: as many as other programs leave cores, looked at all the time, and
    in a training once, at its beginning.

    The threads of a product wait for each other by spinning, and so hold the cores that the one
    they wait for could have: where another program takes one of two cores, two threads are several
    times slower than one. How long they spin is settled when libgomp is loaded, the number of
    threads is not.

    Nothing is done where the person has settled it: by one of `SETTLED` in the environment, or by
    calling torch.set_num_threads after this has begun.

    Attributes:
        most: how many there were at the beginning.
    """

    SETTLED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    PAUSE = 0.5
    """Seconds between two looks: the kernel counts in hundredths."""

    def __init__(self) -> None:
        import torch

        self._get, self._set = torch.get_num_threads, torch.set_num_threads
        self.most = self._now = self._get()
        chosen = any(os.environ.get(name) for name in self.SETTLED)
        self._off = self.most == 1 or chosen or tensor_device() == "cuda"
        self._told = False
        self._seen = _worked()

    def adapt(self, *_: object) -> None:
        """Look at what others took since the last look, if that is long ago; as a hook of a model
        it is called before each pass."""
        if self._off or time.monotonic() - self._seen[0] < self.PAUSE:
            return
        if self._get() != self._now:
            self._off = True
            return
        before, self._seen = self._seen, _worked()
        seconds, all_, own = (new - old for new, old in zip(self._seen, before, strict=True))
        others = max(0.0, all_ - own) / seconds
        fitting = max(1, min(self.most, round(len(_cores()) - others)))
        if fitting == self._now:
            return
        level = logging.DEBUG if self._told else logging.INFO
        log.log(
            level,
            f"other programs take {others:.1f} of {len(_cores())} cores: {fitting} instead of "
            f"{self._now} threads",
        )
        self._told = True
        self._take(fitting)

    @contextmanager
    def settled(self, count: int | None = None) -> Iterator[int]:
        """Inside, one number of threads, which is given: products in bf16 are rounded otherwise by
        another number, and a resumed training is the unbroken one's bit for bit.

        Args:
            count: to take; None takes what other programs leave now.
        """
        if not self._off:
            if count is None:
                self.adapt()
            else:
                self._take(min(count, self.most))
        before, self._off = self._off, True
        given = self._get()
        try:
            yield given
        finally:
            self._off = before
            self._set(given)

    def _take(self, count: int) -> None:
        self._now = count
        self._set(count)


@cache
def threads() -> Threads:
    """Those of this process, whose others are looked at from the first call on."""
    return Threads()


def _worked() -> tuple[float, float, float]:
    """Seconds: the time now, what this process's cores have worked, and what for it. Programs of a
    lower priority than usual do not count, unless this is one: they give way."""
    import psutil

    names = ("user", "system", "nice")[: 3 if os.nice(0) > 0 else 2]
    times = psutil.cpu_times(percpu=True)
    all_ = sum(getattr(times[core], name) for core in _cores() for name in names)
    return time.monotonic(), all_, time.process_time()


def _cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
