"""Unsloth, imported before the libraries it patches, and the device it found.

Import this module before transformers, TRL or PEFT.
"""

from __future__ import annotations

import os
from typing import Any

from fasttune.errors import FasttuneError
from fasttune.quiet import quiet

CPU_BACKEND_HINT = (
    "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 (the first release with a CPU "
    "backend); `fasttune doctor` tells more"
)


def _import() -> Any:
    # Unsloth would set "false", and rows would be tokenized on one core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
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
