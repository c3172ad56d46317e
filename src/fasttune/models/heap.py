"""Return unused memory to the kernel, or keep it; on Linux with glibc only."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
MADV_PAGEOUT = 21  # from Linux' mman.h, since 5.4; an older kernel refuses it
HIGHEST = 2**25
"""Bytes of the largest block that glibc puts on its heap without being told to."""


@contextmanager
def loading() -> Iterator[None]:
    """Take every tensor of 1 MiB or more from the kernel, and return it there.

    Loading a quantized Phi-2 would otherwise leave 1.4 GB of unused heap, which is missing at the
    peak. Afterwards glibc works with the thresholds that it reaches by itself.
    """
    _set(M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        _set(M_MMAP_THRESHOLD, HIGHEST)
        _set(M_TRIM_THRESHOLD, 2 * HIGHEST)
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def release_mapped_files() -> None:
    """Return the pages of the model's files to the kernel: quantized weights are not read again.
    Pages of the embeddings come back when they are read."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return
    madvise = ctypes.CDLL(None).madvise
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def keep_freed_memory() -> None:
    """Keep freed memory for the next step. The kernel fills returned memory with zeros: 5 % of a
    step's processor time, 2.5 % with this."""
    _set(M_MMAP_THRESHOLD, 2**30)
    _set(M_TRIM_THRESHOLD, 2**31 - 1)


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
