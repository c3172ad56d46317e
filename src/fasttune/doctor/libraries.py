"""Check the libraries that training uses, by running them instead of only importing them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fasttune.machine import tensor_device, this_device, version_of

CPU_BACKEND = "2026.10.9"
TRAINING = ("transformers", "trl", "peft", "datasets", "torch", "bitsandbytes")
ALSO_TESTED = ("accelerate", "tokenizers", "unsloth", "unsloth_zoo")
CPU_BACKEND_HINT = f"pip install --no-deps unsloth=={CPU_BACKEND} unsloth_zoo=={CPU_BACKEND}"


@dataclass(frozen=True)
class Result:
    """What a check found, and what to do. Only a "failure" keeps fasttune from working; `diagnose`
    sets the check's name."""

    status: Literal["ok", "warning", "failure"]
    detail: str
    hint: str = ""
    name: str = ""


def has_cuda() -> bool:
    return tensor_device() == "cuda"


def check_torch() -> Result:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    return Result("ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")


def check_versions() -> Result:
    """Compare the installed versions with fasttune's requirements and with the tested versions."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires("fasttune") or []]
    required = {r.name: r.specifier for r in requirements if r.marker is None}
    installed, wrong = [], []
    for name in TRAINING:
        version, specifier = version_of(name), required.get(name)
        installed.append(f"{name} {version or 'missing'}")
        if not version or (specifier and not specifier.contains(version, prereleases=True)):
            wrong.append(f'"{name}{specifier or ""}"')
    detail = ", ".join(installed)
    if wrong:
        return Result("failure", detail, f"pip install {' '.join(wrong)}")
    if newer := newer_than_tested():
        named = ", ".join(f"{name} {now} (tested: {then})" for name, (now, then) in newer.items())
        tested = " ".join(f"{name}=={then}" for name, (_, then) in newer.items())
        hint = f"no problems are known; if something fails: pip install {tested}"
        return Result("warning", f"{detail}; newer than tested: {named}", hint)
    return Result("ok", detail)


def newer_than_tested() -> dict[str, tuple[str, str]]:
    """Map each library that is newer than the tested version to both versions."""
    from packaging.version import Version

    text = Path(__file__).with_name("constraints.txt").read_text(encoding="utf-8")
    tested = dict(line.split("==") for line in text.split() if "==" in line)
    installed = {name: version_of(name) for name in (*TRAINING, *ALSO_TESTED)}
    return {
        name: (version, tested[name])
        for name, version in installed.items()
        if version and name in tested and Version(version).release > Version(tested[name]).release
    }


# Unsloth patches the modules it finds imported, and a failed import can leave broken modules
# behind. A separate process keeps both from the other checks.
UNSLOTH_PROBE = """
import json
try:
    from fasttune.models.unsloth import hide_broken_torchvision
    hide_broken_torchvision()
    import unsloth
    result = {"device": str(unsloth.DEVICE_TYPE)}
except BaseException as error:
    result = {"error": type(error).__name__, "message": str(error)}
with open("probe.json", "w") as file:
    json.dump(result, file)
"""


def probe_unsloth() -> dict[str, str]:
    """Return {"device": ...} if `import unsloth` works, else {"error": type, "message": ...}."""
    with tempfile.TemporaryDirectory() as folder:  # Unsloth also writes a cache to its folder
        process = subprocess.run(
            [sys.executable, "-c", UNSLOTH_PROBE],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
            cwd=folder,
        )
        file = Path(folder, "probe.json")
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
    last_line = (process.stderr.strip() or "it printed nothing").splitlines()[-1]
    return {"error": f"exit status {process.returncode}", "message": last_line}


def check_unsloth() -> Result:
    from packaging.version import Version

    version = version_of("unsloth")
    if version is None:
        return Result("failure", "not installed", "pip install unsloth")
    probe = probe_unsloth()
    if "error" not in probe:
        return Result("ok", f"{version}, {probe['device']} backend")
    message = probe["message"].strip().partition("\n")[0]
    detail = f"{version}: {probe['error']}: {message}"
    if "torchvision" in probe["message"]:
        hint = "pip uninstall torchvision (it does not fit this torch; fasttune needs no images)"
    elif probe["error"] != "NotImplementedError":
        hint = "see the whole error with: python -c 'import unsloth'"
    elif Version(version) < Version(CPU_BACKEND):
        hint = CPU_BACKEND_HINT
    else:
        hint = "unset UNSLOTH_DISABLE_CPU_FALLBACK, or install a torch that drives the accelerator"
    return Result("failure", detail, hint)


def check_bitsandbytes() -> Result:
    """Compare NF4's forward and backward pass with fp32, with double quantisation and without."""
    version = version_of("bitsandbytes")
    if version is None:
        return Result("failure", "not installed", "pip install bitsandbytes")
    for double, how in ((True, "with"), (False, "without")):
        if problem := nf4_problem(tensor_device(), double):
            detail = f"{version}: NF4 {how} double quantisation is wrong: {problem}"
            return Result("failure", detail, "reinstall bitsandbytes and torch")
    checked = "NF4 forward and backward are right, with and without double quantisation"
    return Result("ok", f"{version}, {checked}")


def nf4_problem(device: str, double: bool) -> str:
    """Return what is wrong with NF4 on a device, or "".

    The weights must be within NF4's rounding error of the original: half of its widest gap, 0.304,
    times the scale, the largest weight of each block of 64. Double quantisation stores a scale's
    distance from the mean scale in 8 bits, whose widest gap is 0.0141 of the largest distance; here
    half of that is less than 0.01 of any scale. Output and gradient must be within 1e-3 of the
    largest value of the same product with the dequantised weights in fp32.
    """
    import bitsandbytes as bnb
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator)
    layer = bnb.nn.Linear4bit(
        128, 64, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=double
    )
    layer.load_state_dict({"weight": weight, "bias": torch.randn(64, generator=generator)})
    layer = layer.to(device).train()
    # With AVX512-BF16, bitsandbytes may repack the weights for inference and cannot train them.
    layer.support_avx512bf16_for_cpu = False
    state = layer.weight.quant_state
    restored = bnb.functional.dequantize_4bit(layer.weight.data, state).float()
    largest = weight.view(-1, 64).abs().amax(1, keepdim=True)
    rounding = (restored.cpu() - weight).view(-1, 64).abs() / largest
    bound = 0.153 + 0.01 * double
    if not bool((rounding <= bound).all()):
        return (
            f"weights are off by {rounding.max().item():.3f} of their block's largest, "
            f"not {bound:.3f}"
        )

    x = torch.randn(5, 128, generator=generator).to(device).requires_grad_()
    upstream = torch.randn(5, 64, generator=generator).to(device)
    out = layer(x)
    out.backward(upstream)
    expected = x.detach() @ restored.T + layer.bias.detach().float()
    for name, actual, correct in (
        ("the output", out.detach(), expected),
        ("the gradient", x.grad, upstream @ restored),
    ):
        if actual is None or not bool(torch.isfinite(actual).all()):
            return f"{name} is not finite"
        error = ((actual.float() - correct).abs().max() / correct.abs().max()).item()
        if not error <= 1e-3:
            return f"{name} is off by {error:.2g} of its largest value"
    return ""


def check_triton() -> Result:
    if importlib.util.find_spec("triton") is None:
        if has_cuda():
            return Result("failure", "not installed", "pip install triton")
        return Result("ok", "not installed; only a GPU needs it")
    version = importlib.import_module("triton").__version__
    return Result("ok", version if has_cuda() else f"{version}, not used without a GPU")


def check_xformers() -> Result:
    """List the operators that load: xformers imports even if its kernels do not fit torch."""
    if importlib.util.find_spec("xformers") is None:
        return Result("ok", "not installed; torch's own attention is used")
    common = importlib.import_module("xformers.ops.fmha").common
    loads: dict[str, bool] = {}
    for operator in _subclasses(common.AttentionFwOpBase):
        name = str(operator.NAME)
        if "splitk" not in name.lower():  # those are for decoding
            try:
                loads[name] = bool(operator.is_available())
            except Exception:  # a broken extension may raise anything
                loads[name] = False
    loaded, broken = (
        ", ".join(sorted(name for name in loads if loads[name] == works)) or "nothing"
        for works in (True, False)
    )
    detail = f"{version_of('xformers')}, loads: {loaded}; does not load: {broken}"
    if not has_cuda():
        return Result("ok", f"{detail}; not used without a GPU")
    if not any(loads.values()):
        return Result("warning", detail, "install the xformers release built for this torch")
    return Result("ok", detail)


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


KERNELS = {
    "flash attention": "flash_sdp_enabled",
    "efficient attention": "mem_efficient_sdp_enabled",
    "cudnn attention": "cudnn_sdp_enabled",
    "math": "math_sdp_enabled",
}
"""An attention kernel, as `SDPBackend` names it -> torch's function that tells if it is enabled."""

WITHIN = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
"""Allowed difference of attention from fp32, as a share of the largest value."""


def check_attention() -> Result:
    """Name the kernels of torch's attention in the dtype of a run here, with Phi-2's heads of 80,
    and compare outputs and gradients with fp32."""
    import torch

    from fasttune.config import RunConfig
    from fasttune.models.choices import decide

    dtype = decide(RunConfig(), this_device()).dtype
    length = 128
    causal = torch.ones(length, length, dtype=torch.bool, device=tensor_device()).tril()
    packed = causal.clone()
    packed[length // 2 :, : length // 2] = False  # the second row does not see the first
    kernels = []
    for case, mask, dense in (
        ("a causal row", causal, None),
        ("packed rows under one mask", packed, packed[None, None]),
    ):
        kernel, error = attention_kernel(dtype, mask, dense)
        if not error <= WITHIN[dtype]:  # also refuses NaN
            return Result(
                "failure",
                f"{kernel} in {dtype} is wrong for {case}: off by {error:.2g} of the largest value",
                "reinstall torch, in the build that fits the driver",
            )
        kernels.append(f"{kernel} for {case}")
    cuda = torch.backends.cuda
    enabled = ", ".join(name for name, is_enabled in KERNELS.items() if getattr(cuda, is_enabled)())
    return Result(
        "ok",
        f"{dtype}: sdpa picks {', '.join(kernels)}; enabled: {enabled}; "
        f"flash-attn {version_of('flash-attn') or 'not installed'}",
    )


def attention_kernel(dtype: str, mask: Any, dense: Any) -> tuple[str, float]:
    """The kernel that torch picks, and the largest error of its output and gradients against fp32,
    as a share of the largest value.

    Args:
        mask: [tokens, tokens], True for a token that is seen.
        dense: the mask as sdpa takes it; None for `is_causal`.
    """
    import torch
    from torch.nn.attention import SDPBackend

    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 1, 32, len(mask), 80, generator=generator).to(mask.device)
    query, key, value = (x.to(getattr(torch, dtype)).requires_grad_() for x in wide[:3])
    options = {"is_causal": True} if dense is None else {"attn_mask": dense}
    picked = SDPBackend(torch._fused_sdp_choice(query, key, value, **options)).name
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    out.backward(wide[3].to(out.dtype))

    exact = [x.detach().float().requires_grad_() for x in (query, key, value)]
    scores = exact[0] @ exact[1].transpose(-1, -2) * 80**-0.5
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ exact[2]
    expected.backward(wide[3].to(out.dtype).float())
    gradients = [x.grad for x in (query, key, value)]
    correct = [expected, *(x.grad for x in exact)]
    errors = [
        (got.float() - want).abs().max() / want.abs().max()
        for got, want in zip([out, *gradients], correct, strict=True)
    ]
    # torch's maximum is NaN if one of them is NaN; Python's need not be.
    return picked.lower().replace("_", " "), torch.stack(errors).max().item()
