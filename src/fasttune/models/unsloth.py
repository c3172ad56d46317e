"""Importing Unsloth before the libraries it patches."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fasttune.errors import FasttuneError, reason
from fasttune.files import cache_dir
from fasttune.machine import this_device
from fasttune.terminal import quiet


@cache
def import_unsloth() -> Any:
    """Import Unsloth's FastLanguageModel. Call this before anything imports transformers, TRL or
    PEFT, which it patches."""
    hide_broken_torchvision()
    # Unsloth's default is "false", which tokenizes rows on one core.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # On a GPU, Unsloth replaces `generate` with a version that refuses fasttune's key-value cache.
    os.environ["UNSLOTH_DISABLE_FAST_GENERATION"] = "1"
    # By default Unsloth keeps the fp32 input of a block in bf16 until the backward pass. Gradients
    # of a run in fp32 were 0.4 % off.
    os.environ.setdefault("UNSLOTH_OFFLOAD_FP32", "exact")
    _disable_telemetry()
    _set_compile_folder()
    try:
        with quiet():
            from unsloth import FastLanguageModel
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise FasttuneError(
            "Unsloth cannot be imported on this machine",
            reason(error),
            "run `pip uninstall torchvision`: it does not fit this torch, and fasttune needs no "
            "images"
            if "torchvision" in str(error)
            else "run `pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9`, the first "
            "release that runs on a CPU; `fasttune doctor` shows details",
        ) from error
    return FastLanguageModel


def import_unsloth_on_gpu() -> None:
    """Import Unsloth to generate, except on a CPU, where it is not used."""
    hide_broken_torchvision()
    if this_device().kind != "cpu":
        import_unsloth()


def _disable_telemetry() -> None:
    """On a GPU, Unsloth reports its environment to the Hub at each load and waits up to 120 s for
    it. TRL reports each trainer."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):
        vars(constants)["HF_HUB_DISABLE_TELEMETRY"] = True  # it has read the variable


@cache
def hide_broken_torchvision() -> None:
    """Hide a torchvision that does not fit torch. Call this before transformers is imported.

    Unsloth installs a torchvision for CUDA. Its operators do not load with a CPU build of torch,
    and then neither Unsloth nor transformers' models can be imported.
    """
    try:
        torch_for_cpu, vision_for_cpu = (
            version(name).endswith("+cpu") for name in ("torch", "torchvision")
        )
    except PackageNotFoundError:
        return
    if not torch_for_cpu or vision_for_cpu or "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        os.environ["UNSLOTH_SKIP_TORCHVISION_CHECK"] = "1"


def settle_compilation() -> None:
    """Switch modules that Unsloth could not compile to eager execution. Unsloth itself does this at
    the beginning of a step, in a patch of the method that fasttune's trainer overrides."""
    from unsloth_zoo.temporary_patches.utils import apply_pending_eager_fallbacks

    apply_pending_eager_fallbacks()


def _set_compile_folder() -> None:
    """Let Unsloth compile into a folder of this process, deleted at exit, unless the user has set
    UNSLOTH_COMPILE_LOCATION. Compiled files have the same names under different settings, so no
    process may use another's. Folders of killed processes are deleted here."""
    chosen = os.environ.get("UNSLOTH_COMPILE_LOCATION", "")
    if chosen and not _of_a_process(Path(chosen)):
        return
    import psutil

    parent = cache_dir().absolute() / "unsloth"
    folder = parent / str(os.getpid())
    for old in filter(_of_a_process, parent.glob("*")):
        if old == folder or not psutil.pid_exists(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # the cache is read-only
        folder = Path(tempfile.mkdtemp(prefix="fasttune-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder)


def _of_a_process(folder: Path) -> bool:
    """Whether `_set_compile_folder` creates folders of this name."""
    return folder.parent.name == "unsloth" and folder.name.isdigit()
