"""Every check, in every state that can be brought about here."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import asdict
from importlib.machinery import ModuleSpec

import pytest
import torch

from fasttune import FasttuneError, hub
from fasttune.doctor import libraries, machine
from fasttune.doctor.libraries import Result
from fasttune.doctor.machine import CHECKS, diagnose
from fasttune.machine import Device
from fasttune.planning.devices import GPUS
from tests.conftest import cli

pytestmark = pytest.mark.slow


def no_version(monkeypatch, name):
    real = libraries.version_of
    monkeypatch.setattr(
        libraries, "version_of", lambda asked: None if asked == name else real(asked)
    )


def version_of(monkeypatch, name, version):
    real = libraries.version_of
    monkeypatch.setattr(
        libraries, "version_of", lambda asked: version if asked == name else real(asked)
    )


def no_module(monkeypatch, *names):
    real = libraries.importlib.util.find_spec
    hidden = lambda asked, *rest: None if asked in names else real(asked, *rest)  # noqa: E731
    monkeypatch.setattr(libraries.importlib.util, "find_spec", hidden)


def unsloth_says(monkeypatch, version="2026.10.9", **found):
    version_of(monkeypatch, "unsloth", version)
    monkeypatch.setattr(libraries, "probe_unsloth", lambda: found)
    return libraries.check_unsloth()


# Running checks


def test_a_crash_is_that_checks_failure_and_not_the_end(capsys):
    def noisy():
        print("noise")
        print("more noise", file=sys.stderr)
        return Result("ok", "fine")

    def crash():
        raise ZeroDivisionError("by zero\nsecond line")

    def refuse():
        raise FasttuneError("it is broken", "here", "mend it")

    found = list(diagnose([("crash", crash), ("refuse", refuse), ("noisy", noisy)]))
    assert [asdict(finding) for finding in found] == [
        {
            "name": "crash",
            "status": "failure",
            "detail": "ZeroDivisionError: by zero",
            "hint": "",
        },
        {
            "name": "refuse",
            "status": "failure",
            "detail": "it is broken; here",
            "hint": "mend it",
        },
        {"name": "noisy", "status": "ok", "detail": "fine", "hint": ""},
    ]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failure", 1)])
def test_exit_status_and_json(monkeypatch, capsys, status, code):
    result = Result(status, "what was found", "what to do")
    monkeypatch.setattr(machine, "CHECKS", [("one", lambda: result)])
    assert cli("doctor", "--json").status == code
    one, plugins = json.loads(capsys.readouterr().out)
    assert one == {
        "name": "one",
        "status": status,
        "detail": "what was found",
        "hint": "what to do",
    }
    assert (plugins["name"], plugins["status"]) == ("plugins", "ok")


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(
        machine, "CHECKS", [("one", lambda: Result("failure", "a [red] thing", "mend it"))]
    )
    assert cli("doctor").status == 1
    captured = capsys.readouterr()
    assert "a [red] thing" in captured.out and "-> mend it" in captured.out
    assert "Traceback" not in captured.err


def test_offline_leaves_the_hub_alone(monkeypatch, capsys):
    def ask():
        raise AssertionError("asked")

    monkeypatch.setattr(machine, "CHECKS", [("Hub", ask)])
    assert cli("doctor", "--json", "--offline").status == 0
    assert [finding["name"] for finding in json.loads(capsys.readouterr().out)] == ["plugins"]
    assert cli("doctor", "--json").status == 1


def test_a_broken_plugin_is_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "CHECKS", [])
    (tmp_path / "broken.py").write_text("1 / 0\n")
    assert cli("doctor", "--json", "--plugins-dir", str(tmp_path)).status == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["status"] == "failure"
    assert "broken.py" in finding["detail"] and "ZeroDivisionError" in finding["detail"]


def test_plugins_that_cannot_even_be_listed_are_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "CHECKS", [])
    assert cli("doctor", "--json", "--plugins-dir", str(tmp_path / "absent")).status == 1
    assert "no such plugins folder" in json.loads(capsys.readouterr().out)[0]["detail"]


def test_the_real_thing_prints_json_and_nothing_else():
    done = subprocess.run(
        [sys.executable, "-c", "from fasttune.cli import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert {*found[0]} == {"name", "status", "detail", "hint"}
    assert {finding["status"] for finding in found} <= {"ok", "warning", "failure"}
    assert {name for name, _check in CHECKS} < {finding["name"] for finding in found}
    failures = [finding for finding in found if finding["status"] == "failure"]
    assert done.returncode == bool(failures)


# The checks


def test_python(monkeypatch):
    assert machine.check_python().status == "ok"
    monkeypatch.setattr(machine, "PYTHON", (9, 0))
    assert machine.check_python().status == "failure"


def test_torch():
    result = libraries.check_torch()
    assert result.status == "ok" and result.detail.startswith(torch.__version__)


@pytest.mark.parametrize(("bf16", "status"), [(True, "ok"), (False, "warning")])
def test_accelerator(monkeypatch, bf16, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    properties = types.SimpleNamespace(total_memory=16 * machine.GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    result = machine.check_accelerator()
    assert result.status == status
    assert result.detail == f"Some GPU, capability 7.5, 16.0 GB, bf16 {'yes' if bf16 else 'no'}"


@pytest.mark.parametrize(("driver", "status"), [(False, "warning"), (True, "failure")])
def test_no_accelerator(monkeypatch, tmp_path, driver, status):
    loaded = tmp_path / "version"
    if driver:
        loaded.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01\n")
    monkeypatch.setattr("fasttune.machine.DRIVER", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = machine.check_accelerator()
    assert result.status == status and result.hint
    assert ("CPU backend and the demo model" in result.detail) is not driver


def test_unsloth_works(monkeypatch):
    assert unsloth_says(monkeypatch, device="cpu") == Result("ok", "2026.10.9, cpu backend")


def test_unsloth_is_missing(monkeypatch):
    no_version(monkeypatch, "unsloth")
    monkeypatch.setattr(libraries, "probe_unsloth", lambda: pytest.fail("probed"))
    assert libraries.check_unsloth() == Result("failure", "not installed", "pip install unsloth")


@pytest.mark.parametrize(
    ("version", "error", "message", "hint"),
    [
        ("2026.10.7", "NotImplementedError", "You need a GPU.", libraries.CPU_BACKEND_HINT),
        ("2026.10.9", "NotImplementedError", "You need a GPU.", "unset UNSLOTH_DISABLE_CPU"),
        ("2026.10.9", "ImportError", "torchvision::nms\nis absent", "pip uninstall torchvision"),
        ("2026.10.9", "exit status -11", "core dumped", "import unsloth"),
    ],
)
def test_unsloth_fails(monkeypatch, version, error, message, hint):
    result = unsloth_says(monkeypatch, version, error=error, message=message)
    assert result.status == "failure" and hint in result.hint
    assert result.detail == f"{version}: {error}: {message.splitlines()[0]}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print('noise')\nDEVICE_TYPE = 'cuda'", {"device": "cuda"}),
        (
            "raise NotImplementedError('no GPU')",
            {"error": "NotImplementedError", "message": "no GPU"},
        ),
        ("raise SystemExit('gone')", {"error": "SystemExit", "message": "gone"}),
        (
            "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)",
            {"error": "exit status 3", "message": "last words"},
        ),
    ],
)
def test_probe_survives_whatever_unsloth_does(monkeypatch, tmp_path, source, found):
    (tmp_path / "unsloth.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert libraries.probe_unsloth() == found


@pytest.fixture(params=[True, False], ids=["double quantisation", "plain"])
def double(request):
    return request.param


def test_nf4_on_this_cpu(double):
    assert libraries.nf4_problem("cpu", double) == ""
    assert libraries.check_bitsandbytes().status == "ok"


def test_both_kinds_of_nf4_are_tried(monkeypatch, double):
    def only_one_works(device, tried):
        return "" if tried != double else "it is off"

    monkeypatch.setattr(libraries, "nf4_problem", only_one_works)
    result = libraries.check_bitsandbytes()
    assert result.status == "failure"
    assert f"NF4 {'with' if double else 'without'} double quantisation is wrong" in result.detail


def test_double_quantisation_is_what_is_tried(monkeypatch, double):
    import bitsandbytes as bnb

    real, nested = bnb.functional.dequantize_4bit, []

    def dequantize(data, state, **options):
        nested.append(state.nested)
        return real(data, state, **options)

    monkeypatch.setattr(bnb.functional, "dequantize_4bit", dequantize)
    assert libraries.nf4_problem("cpu", double) == ""
    assert nested[0] == double


def test_nf4_wrong_weights_are_caught(monkeypatch, double):
    import bitsandbytes as bnb

    real = bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *a, **k: real(*a, **k) * 1.1)
    assert "weights are off" in libraries.nf4_problem("cpu", double)
    result = libraries.check_bitsandbytes()
    assert result.status == "failure" and result.hint


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda out: out * 1.01, "the output is off"),
        (lambda out: out * float("nan"), "the output is not finite"),
        # right in the forward pass, wrong in the backward pass
        (lambda out: 2 * out - out.detach(), "the gradient is off"),
        (lambda out: out + (out - out.detach()) * float("nan"), "not finite"),
    ],
)
def test_nf4_wrong_results_are_caught(monkeypatch, double, wrong, problem):
    import bitsandbytes as bnb

    real = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: wrong(real(self, x)))
    assert problem in libraries.nf4_problem("cpu", double)


def test_bitsandbytes_is_missing(monkeypatch):
    no_version(monkeypatch, "bitsandbytes")
    assert libraries.check_bitsandbytes().status == "failure"


@pytest.mark.parametrize(("cuda", "status"), [(True, "failure"), (False, "ok")])
def test_triton_is_missing(monkeypatch, cuda, status):
    no_module(monkeypatch, "triton")
    monkeypatch.setattr(libraries, "has_cuda", lambda: cuda)
    assert libraries.check_triton().status == status


def test_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.9"))
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(libraries, "has_cuda", lambda: False)
    assert libraries.check_triton() == Result("ok", "3.9, not used without a GPU")
    monkeypatch.setattr(libraries, "has_cuda", lambda: True)
    assert libraries.check_triton() == Result("ok", "3.9")


def fake_xformers(monkeypatch, **operators):
    class Base:
        pass

    def is_available(answer):
        def ask(cls):
            if isinstance(answer, Exception):
                raise answer
            return answer

        return classmethod(ask)

    for name, answer in operators.items():
        operator = type(name, (Base,), {"NAME": name, "is_available": is_available(answer)})
        setattr(Base, f"kept_{name}", operator)  # a class forgets subclasses that nothing holds
    fmha = types.SimpleNamespace(common=types.SimpleNamespace(AttentionFwOpBase=Base))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", fmha)
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    version_of(monkeypatch, "xformers", "0.0.35")
    monkeypatch.setattr(libraries, "has_cuda", lambda: True)


def test_xformers_names_what_loads(monkeypatch):
    fake_xformers(monkeypatch, cutlassF=True, fa3F=False, odd=OSError("no library"), x_splitK4=True)
    assert libraries.check_xformers() == Result(
        "ok", "0.0.35, loads: cutlassF; does not load: fa3F, odd"
    )


def test_xformers_without_operators(monkeypatch):
    fake_xformers(monkeypatch, cutlassF=False)
    result = libraries.check_xformers()
    assert result.status == "warning" and result.hint
    assert result.detail == "0.0.35, loads: nothing; does not load: cutlassF"
    monkeypatch.setattr(libraries, "has_cuda", lambda: False)
    assert libraries.check_xformers().status == "ok"


def test_xformers_is_missing(monkeypatch):
    no_module(monkeypatch, "xformers")
    assert libraries.check_xformers().detail.startswith("not installed")


def rows(length=128):
    """The masks of a causal row and of two packed ones."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    packed = causal.clone()
    packed[length // 2 :, : length // 2] = False
    return causal, packed


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (Device("CPU", "cpu", 8e9, bf16=False), "float32"),
        (Device("CPU", "cpu", 8e9, bf16=True), "bfloat16"),
        (GPUS["t4"], "float16"),
        (GPUS["a100"], "bfloat16"),
    ],
    ids=lambda value: value.name if isinstance(value, Device) else value,
)
def test_attention_is_tried_in_the_dtype_of_a_run(monkeypatch, device, dtype):
    monkeypatch.setattr(libraries, "this_device", lambda: device)
    real, asked = libraries.attention_kernel, []

    def kernel(*arguments):
        asked.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(libraries, "attention_kernel", kernel)
    result = libraries.check_attention()
    assert result.status == "ok"
    assert result.detail.startswith(f"{dtype}: sdpa picks ")
    assert " for a causal row, " in result.detail
    assert " for packed rows under one mask; enabled: " in result.detail
    (first, causal, no_mask), (second, packed, dense) = asked
    assert first == second == dtype and no_mask is None
    assert torch.equal(causal, rows()[0]) and torch.equal(packed, rows()[1])
    assert dense.shape == (1, 1, 128, 128) and dense.dtype == torch.bool


def test_attention_names_the_kernel_of_each_case(monkeypatch):
    from torch.nn.attention import SDPBackend

    def choice(query, key, value, attn_mask=None, is_causal=False):
        taken = SDPBackend.FLASH_ATTENTION if is_causal else SDPBackend.EFFICIENT_ATTENTION
        return taken.value

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    detail = libraries.check_attention().detail
    assert "picks flash attention for a causal row, efficient attention for packed rows" in detail


@pytest.mark.parametrize(
    "wrong",
    [
        lambda out: out * 1.1,
        lambda out: out * float("nan"),
        # right in the forward pass, wrong in the backward pass
        lambda out: 2 * out - out.detach(),
        lambda out: out + (out - out.detach()) * float("nan"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_wrong_attention_is_caught(monkeypatch, wrong, masked):
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*states, attn_mask=None, **options):
        out = real(*states, attn_mask=attn_mask, **options)
        return wrong(out) if masked == (attn_mask is not None) else out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    result = libraries.check_attention()
    assert result.status == "failure" and result.hint
    assert ("packed rows" if masked else "a causal row") in result.detail


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_bound_of_attention_is_not_loose(dtype):
    causal, packed = rows()
    for mask, dense in ((causal, None), (packed, packed[None, None])):
        _, off = libraries.attention_kernel(dtype, mask, dense)
        assert off < libraries.WITHIN[dtype] / 2
    # the wrong rows are seen
    _, off = libraries.attention_kernel(dtype, packed, None)
    assert off > 10 * libraries.WITHIN[dtype]


@pytest.mark.parametrize(("free", "status"), [(5, "ok"), (3, "warning")])
def test_memory(monkeypatch, free, status):
    import psutil

    ram = types.SimpleNamespace(available=free * machine.GB, total=8 * machine.GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = machine.check_memory()
    assert result.status == status and result.detail == f"RAM {free}.0 of 8.0 GB free"
    gpu = (5 * machine.GB, 16 * machine.GB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: gpu)
    result = machine.check_memory()
    assert result.status == "warning" and "GPU 5.0 of 16.0 GB free" in result.detail


@pytest.mark.parametrize(("free", "status"), [(11, "ok"), (9, "warning")])
def test_disk(monkeypatch, tmp_path, free, status):
    monkeypatch.setenv("FASTTUNE_CACHE", str(tmp_path / "not" / "yet"))
    asked = []

    def usage(path):
        asked.append(path)
        return types.SimpleNamespace(free=free * machine.GB)

    monkeypatch.setattr(machine.shutil, "disk_usage", usage)
    assert machine.check_disk().status == status
    assert tmp_path in asked  # the nearest folder that exists


def test_hub_offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "problem", lambda: pytest.fail("asked"))
    assert machine.check_hub() == Result("ok", "offline by HF_HUB_OFFLINE")


@pytest.mark.parametrize(("problem", "status"), [("", "ok"), ("ConnectError", "warning")])
def test_hub(monkeypatch, problem, status):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(hub, "problem", lambda: problem)
    result = machine.check_hub()
    assert result.status == status and bool(result.hint) == bool(problem)
    assert result.detail == f"https://hub.example{': ConnectError' if problem else ' answers'}"


def test_demo_model(monkeypatch, tmp_path):
    from fasttune.models import demo

    monkeypatch.setenv("FASTTUNE_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "wheel"
    places = ModuleSpec("wheel", None, is_package=True)
    places.submodule_search_locations = [str(package)]
    found = {demo.WHEEL: None, "gguf": None}
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: found[name])
    monkeypatch.setattr(libraries, "has_cuda", lambda: True)
    assert machine.check_demo_model().status == "ok"
    monkeypatch.setattr(libraries, "has_cuda", lambda: False)
    assert machine.check_demo_model().hint == machine.DEMO_HINT

    package.mkdir()
    (package / demo.GGUF).write_bytes(b"x")
    found[demo.WHEEL] = places
    assert machine.check_demo_model().hint == "pip install gguf"
    found["gguf"] = places
    assert machine.check_demo_model().detail.startswith("installed; converted on first use")

    converted = tmp_path / "cache" / demo.DEMO_MODEL
    converted.mkdir(parents=True)
    (converted / "model.safetensors").write_bytes(b"x" * 3_000_000)
    assert machine.check_demo_model() == Result("ok", f"converted, 3 MB in {converted}")


def test_versions_that_are_newer_than_tested_are_named(monkeypatch):
    assert libraries.newer_than_tested() == {}
    tested = libraries.version_of("trl")
    version_of(monkeypatch, "trl", "1.15.99")
    version_of(monkeypatch, "unsloth", "2026.10.99")
    result = libraries.check_versions()
    assert result.status == "warning"
    assert f"newer than tested: trl 1.15.99 (tested: {tested}), unsloth 2026.10.99" in result.detail
    assert f"pip install trl=={tested} unsloth=={libraries.CPU_BACKEND}" in result.hint
    for outside in ("0.9", "99.1"):
        version_of(monkeypatch, "trl", outside)
        result = libraries.check_versions()
        assert result.status == "failure" and result.hint.startswith('pip install "trl')


def test_versions(monkeypatch):
    assert libraries.check_versions().status == "ok"
    version_of(monkeypatch, "trl", "0.9")
    no_version(monkeypatch, "peft")
    requires = ["trl>=1.15", "peft>=0.21", "transformers>=5", 'peft>=99; extra == "later"']
    monkeypatch.setattr(libraries.importlib.metadata, "requires", lambda name: requires)
    result = libraries.check_versions()
    assert result.status == "failure"
    assert "trl 0.9, peft missing" in result.detail
    assert result.hint == 'pip install "trl>=1.15" "peft>=0.21"'
