"""The checks of the libraries that training goes through: they are tried, not only imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fasttune.doctor.checks import Result
from fasttune.machine import tensor_device, this_device

CPU_BACKEND = "2026.10.9"
TRAINING = ("transformers", "trl", "peft", "datasets", "torch", "bitsandbytes")
ALSO_TESTED = ("accelerate", "tokenizers", "unsloth", "unsloth_zoo")
CPU_BACKEND_HINT = f"pip install --no-deps unsloth=={CPU_BACKEND} unsloth_zoo=={CPU_BACKEND}"


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_cuda() -> bool:
    return tensor_device() == "cuda"


def check_torch() -> Result:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    return Result("ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads")


def check_versions() -> Result:
    """The libraries that training goes through, against fasttune's own requirements and the
    versions that its tests ran with."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires("fasttune") or []]
    wanted = {r.name: r for r in requirements if r.marker is None}
    found, wrong = [], []
    for name in TRAINING:
        version = version_of(name)
        found.append(f"{name} {version or 'missing'}")
        specifier = wanted[name].specifier if name in wanted else None
        fits = specifier is None or (version and specifier.contains(version, prereleases=True))
        if version is None or not fits:
            wrong.append(f'"{name}{specifier or ""}"')
    if wrong:
        return Result("failure", ", ".join(found), f"pip install {' '.join(wrong)}")
    if newer := newer_than_tested():
        named = ", ".join(f"{name} {now} (tested: {then})" for name, (now, then) in newer.items())
        back = " ".join(f"{name}=={then}" for name, (_, then) in newer.items())
        hint = f"nothing is known against them; if something fails: pip install {back}"
        return Result("warning", f"{', '.join(found)}; newer than tested: {named}", hint)
    return Result("ok", ", ".join(found))


def newer_than_tested() -> dict[str, tuple[str, str]]:
    """Library -> its version here and the one that the tests ran with, where that is older."""
    from packaging.version import Version

    text = Path(__file__).with_name("constraints.txt").read_text(encoding="utf-8")
    tested = dict(line.split("==") for line in text.split() if "==" in line)
    here = {name: version_of(name) for name in (*TRAINING, *ALSO_TESTED)}
    return {
        name: (version, tested[name])
        for name, version in here.items()
        if version and name in tested and Version(version).release > Version(tested[name]).release
    }


# Unsloth patches what it finds imported, and its import can fail in ways that leave half-made
# modules behind; in a process of its own it disturbs none of the other checks.
UNSLOTH_PROBE = """
import json
try:
    import fasttune.models
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

    version = version_of("unsloth")
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
    """Quantise a layer to NF4, once as training loads it, with the scales quantised as well (double
    quantisation), and once without, and compare its forward and backward with a computation in
    fp32."""
    version = version_of("bitsandbytes")
    if version is None:
        return Result("failure", "not installed", "pip install bitsandbytes")
    for double, how in ((True, "with"), (False, "without")):
        problem = nf4_problem(tensor_device(), double)
        if problem:
            return Result(
                "failure",
                f"{version}: NF4 {how} double quantisation is wrong: {problem}",
                "reinstall bitsandbytes and torch",
            )
    return Result(
        "ok",
        f"{version}, NF4 forward and backward are right, with and without double quantisation",
    )


def nf4_problem(device: str, double: bool) -> str:
    """What is wrong with NF4 on a device, or "".

    The weights must be within NF4's rounding error of the original: half of its widest gap, 0.304,
    times the largest weight of each block of 64, the block's scale. Double quantisation keeps the
    scale's distance from the mean of all scales in 8 bits, whose widest gap is 0.0141 of the
    largest such distance: here half of that is less than 0.01 of any scale. Output and gradient
    must be within 1e-3 of the largest value of the same product with the dequantised weights in
    fp32.
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
    # With AVX512-BF16, bitsandbytes may repack the weights for inference, which cannot be trained.
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
        if has_cuda():
            return Result("failure", "not installed", "pip install triton")
        return Result("ok", "not installed; only a GPU needs it")
    version = importlib.import_module("triton").__version__
    return Result("ok", version if has_cuda() else f"{version}, not used without a GPU")


def check_xformers() -> Result:
    """xformers imports even where its kernels do not fit torch; what counts is what loads.

    The split-K operators are left out: they serve decoding, not training.
    """
    if importlib.util.find_spec("xformers") is None:
        return Result("ok", "not installed; torch's own attention is used")
    version = version_of("xformers")
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
    if not has_cuda():
        return Result("ok", f"{detail}; not used without a GPU")
    if loaded:
        return Result("ok", detail)
    return Result("warning", detail, "install the xformers release built for this torch")


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
"""torch's attention kernels as `SDPBackend` names them, and who tells whether one is enabled."""

WITHIN = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
"""How far attention may be from fp32's, as a share of its largest value."""


def check_attention() -> Result:
    """Torch's attention in the dtype that a run takes here, with Phi-2's heads of 80: which kernel
    is picked for a causal row and which for packed rows under one mask, and whether output and
    gradients are those of fp32."""
    import torch

    from fasttune.config import RunConfig
    from fasttune.models.choices import decide

    choices = decide(RunConfig(), this_device())
    length = 128
    causal = torch.ones(length, length, dtype=torch.bool, device=tensor_device()).tril()
    packed = causal.clone()
    packed[length // 2 :, : length // 2] = False  # the second row does not see the first
    said = []
    for what, mask, dense in (
        ("a causal row", causal, None),
        ("packed rows under one mask", packed, packed[None, None]),
    ):
        kernel, off = attention_kernel(choices.dtype, mask, dense)
        if not off <= WITHIN[choices.dtype]:
            return Result(
                "failure",
                f"{kernel} in {choices.dtype} is wrong for {what}: off by {off:.2g} of the largest",
                "reinstall torch, in the build that fits the driver",
            )
        said.append(f"{kernel} for {what}")
    enabled = ", ".join(
        name for name, ask in KERNELS.items() if getattr(torch.backends.cuda, ask)()
    )
    return Result(
        "ok",
        f"{choices.dtype}: sdpa picks {', '.join(said)}; enabled: {enabled}; "
        f"flash-attn {version_of('flash-attn') or 'not installed'}",
    )


def attention_kernel(dtype: str, mask: Any, dense: Any) -> tuple[str, float]:
    """The kernel that torch picks in a dtype, and how far its output or a gradient is from fp32's,
    as a share of the largest value.

    Args:
        mask: [tokens, tokens], True where a token is seen.
        dense: the same as sdpa is given it; None for `is_causal`.
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
    wanted = [expected, *(x.grad for x in exact)]
    off = [
        (got.float() - want).abs().max() / want.abs().max()
        for got, want in zip([out, *gradients], wanted, strict=True)
    ]
    # torch's maximum is not a number where one of them is none; Python's need not be.
    return picked.lower().replace("_", " "), torch.stack(off).max().item()
