"""Unsloth, imported before the libraries it patches, and the device it found.

Import this module before transformers, TRL or PEFT.
"""

from __future__ import annotations

import atexit
import os
import shutil
from pathlib import Path
from typing import Any

import psutil

from fasttune.errors import FasttuneError, reason
from fasttune.files import cache_dir
from fasttune.quiet import quiet

CPU_BACKEND_HINT = (
    "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9 (the first release with a CPU "
    "backend); `fasttune doctor` tells more"
)


def _set_compile_folder() -> None:
    """Give this process a folder below fasttune's cache, gone at its end, unless the person has
    chosen one.

    Unsloth writes the code that it compiles under names that do not tell the settings it was made
    for, so two processes must not share them, nor a child its parent's. What a killed process left
    is removed here.
    """
    chosen = os.environ.get("UNSLOTH_COMPILE_LOCATION", "")
    if chosen and not _of_a_process(Path(chosen)):
        return
    parent = cache_dir().absolute() / "unsloth"
    folder = parent / str(os.getpid())
    for old in filter(_of_a_process, parent.glob("*")):
        if old == folder or not psutil.pid_exists(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder)


def _of_a_process(folder: Path) -> bool:
    """Whether a folder is of the kind that `_set_compile_folder` makes."""
    return folder.parent.name == "unsloth" and folder.name.isdigit()


def _import() -> Any:
    # Unsloth would set "false", and rows would be tokenized on one core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # On a GPU Unsloth would replace `generate` by one that forces a static cache, and refuses ours.
    os.environ["UNSLOTH_DISABLE_FAST_GENERATION"] = "1"
    # What a block begins with in fp32 Unsloth would keep in bf16 until the backward pass: gradients
    # of a run in fp32 were 0.4 % off.
    os.environ.setdefault("UNSLOTH_OFFLOAD_FP32", "exact")
    _set_compile_folder()  # otherwise Unsloth takes the folder one stands in
    try:
        with quiet():
            from unsloth import FastLanguageModel
    except (ImportError, NotImplementedError, RuntimeError) as error:
        broken_vision = "torchvision" in str(error)
        raise FasttuneError(
            "Unsloth cannot be used on this machine",
            reason(error),
            "pip uninstall torchvision (it does not fit this torch, and fasttune needs no images)"
            if broken_vision
            else CPU_BACKEND_HINT,
        ) from error
    return FastLanguageModel


FastLanguageModel = _import()


def settle_compilation() -> None:
    """Let Unsloth switch what it could not compile to eager execution. It puts that off to the
    beginning of a step, in a patch of the method that our trainer replaces."""
    try:
        from unsloth_zoo.temporary_patches.utils import apply_pending_eager_fallbacks
    except ImportError:  # a release without it
        return
    apply_pending_eager_fallbacks()
