"""Unsloth, imported before the libraries it patches, and the device it found.

Import this module before transformers, TRL or PEFT.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from fasttune.errors import FasttuneError

CPU_BACKEND_HINT = (
    "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 (the first release with a CPU "
    "backend); `fasttune doctor` tells more"
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries print on import and loading from the terminal, unless the block fails.

    Compiled code writes to the descriptors and Python to sys.stdout and sys.stderr, which need not
    be the same; both are redirected.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as sink:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        failed = True
        try:
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
            failed = False
        finally:
            sink.flush()
            for descriptor, number in zip(saved, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            if failed:
                sink.seek(0)
                sys.stderr.write(sink.read())


def _import() -> Any:
    try:
        with quiet():
            from unsloth import FastLanguageModel
    except (ImportError, NotImplementedError, RuntimeError) as error:
        broken_vision = "torchvision" in str(error)
        raise FasttuneError(
            "Unsloth cannot be used on this machine",
            str(error).strip().splitlines()[0],
            "pip uninstall torchvision (it does not fit this torch, and fasttune needs no images)"
            if broken_vision
            else CPU_BACKEND_HINT,
        ) from error
    return FastLanguageModel


FastLanguageModel = _import()

import torch  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
