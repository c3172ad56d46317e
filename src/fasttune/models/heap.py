"""What a process on Linux holds of the RAM without using it: given back, or kept on purpose.

With another C library than glibc, or on another system, nothing of this happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MADV_PAGEOUT = 21  # of Linux' mman.h, since 5.4; an older one refuses it
HIGHEST = 2**25
"""Bytes of the largest block that glibc takes from its heap by itself, once it has seen as large
ones freed."""


@contextmanager
def loading() -> Iterator[None]:
    """Within the block every tensor from 1 MiB on is taken from the kernel and given back to it: a
    quantised Phi-2 would leave 1.4 GB of unused heap behind, and need it at the peak. Then glibc
    works as if it had found its thresholds by itself."""
    _set(M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        _set(M_MMAP_THRESHOLD, HIGHEST)
        _set(M_TRIM_THRESHOLD, 2 * HIGHEST)
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def give_back_mapped_files() -> None:
    """Give the kernel the pages of the model's files, which stay mapped where embeddings are read
    from there. What has been quantised is not read again; the rest comes back when it is. Pages
    that were written to are the file's no longer, and stay."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    madvise = ctypes.CDLL(None).madvise
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(place, 16) for place in line.split()[0].split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one from now on. By default large tensors go
    back to the kernel, which has to fill them with zeros again: 5 % of a step's processor time,
    2.5 % with this."""
    _set(M_MMAP_THRESHOLD, 2**30)
    _set(M_TRIM_THRESHOLD, 2**31 - 1)


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
