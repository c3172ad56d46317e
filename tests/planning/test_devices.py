"""GPUs by the names that the driver gives them, and memory counted as a plan counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fasttune import machine
from fasttune.machine import CONTEXT, GB, Device
from fasttune.planning import cost
from fasttune.planning.devices import DRIVER_NAMES, GPUS, find_device, known_card, with_figures

# Bytes that CUDA reports, where they matter.
A100_40, A100_80 = 42_405_855_232, 84_974_239_744


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla V100-PCIE-16GB", "v100-pcie"),
        ("Tesla V100-PCIE-32GB", "v100-pcie"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090", "3090"),
        ("GeForce RTX 3090", "3090"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
    ],
)
def test_a_card_is_known_by_the_drivers_name(name, key):
    here = with_figures(Device(name, "cuda", 7 * GB, capability=GPUS[key].capability))
    figures = GPUS[key]
    assert (here.matmul, here.bandwidth, here.source) == (
        figures.matmul,
        figures.bandwidth,
        figures.source,
    )
    assert (here.name, here.memory) == (name, 7 * GB)  # of this machine, not of the datasheet
    assert find_device(name) == figures


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A10M",
        "NVIDIA L40",
        "NVIDIA H100 NVL",
        "NVIDIA H100",
        "NVIDIA T400 4GB",
        "GPU of 16 GB",
    ],
)
def test_a_relative_of_a_known_card_has_no_figures(name):
    device = Device(name, "cuda", 16 * GB)
    assert with_figures(device) == device


def test_a_name_without_a_size_is_told_apart_by_the_whole_memory():
    def bandwidth(total, memory):
        return with_figures(Device("NVIDIA A100", "cuda", memory, total=total)).bandwidth

    assert bandwidth(A100_40, 41 * GB) == 1555e9
    assert bandwidth(A100_80, 83 * GB) == 2039e9
    assert bandwidth(A100_80, 40 * GB) == 2039e9  # half of it is another's
    assert bandwidth(None, 80 * GB) == 2039e9
    assert bandwidth(20 * GB, 20 * GB) is None  # neither: a part of a card


def test_a_cpu_is_no_card():
    assert known_card(Device("a100", "cpu", 40 * GB)) is None


def test_every_card_can_be_asked_for_by_its_key():
    assert {*DRIVER_NAMES} == {*GPUS}
    for key, gpu in GPUS.items():
        assert find_device(key) is gpu
        assert gpu.capability is not None and gpu.bf16 == (gpu.capability >= (8, 0))


def test_figures_are_dense_and_accumulate_in_fp32():
    """A multiprocessor does 2,048 FLOP a clock on the A100, 4,096 on the H100 and 1,024 on the
    others, but half of that on GeForce cards and the A10G."""
    # multiprocessors, GHz that its tensor cores reach, FLOP
    peaks = {
        "t4": (40, 1.59, 1024),
        "v100": (80, 1.53, 1024),
        "v100-pcie": (80, 1.37, 1024),
        "l4": (58, 2.04, 1024),
        "a10": (72, 1.695, 1024),
        "a10g": (80, 1.71, 512),
        "3090": (82, 1.695, 512),
        "4090": (128, 2.52, 512),
        "l40s": (142, 2.52, 1024),
        "a100": (108, 1.41, 2048),
        "a100-80gb": (108, 1.41, 2048),
        "a100-80gb-pcie": (108, 1.41, 2048),
        "h100": (132, 1.83, 4096),
        "h100-pcie": (114, 1.62, 4096),
    }
    for key, (processors, clock, operations) in peaks.items():
        assert GPUS[key].matmul == pytest.approx(processors * clock * 1e9 * operations, rel=0.02)


def test_the_documentation_lists_the_same_figures():
    page = Path(__file__).parents[2] / "docs" / "plan.md"
    section = page.read_text(encoding="utf-8").partition("## GPUs")[2].partition("\n## ")[0]
    listed = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert listed == [
        f"| {key} | {gpu.name} | {gpu.memory / GB:.0f} | {gpu.matmul / 1e12:g} | "
        f"{gpu.bandwidth / 1e9:.0f} | {'yes' if gpu.bf16 else 'no'} |"
        for key, gpu in GPUS.items()
    ]


@pytest.fixture
def cuda(monkeypatch):
    """A GPU of 16 GB of which this process has reserved 4 and others hold 2."""
    others, reserved, total = 2 * GB, 4 * GB, 16 * GB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda: (total - others - reserved - CONTEXT, total)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)


def test_a_gpus_memory_is_what_others_leave_with_the_context(cuda):
    device = machine.this_device()
    assert (device.memory, device.total) == (14 * GB, 16 * GB)


def test_a_plan_and_the_measured_peak_count_the_same_of_a_gpu(cuda, monkeypatch):
    from fasttune.planning.shape import read_shape

    work = cost.Workload(read_shape("microsoft/phi-2"), True, "float16", 2, True, 2048, 2048, 2048)
    planned = cost.memory(work, "cuda")
    tensors = planned.weights + planned.training
    # what the allocator holds at the peak: tensors, and what of its blocks they do not fill
    reserved = int(tensors + cost.ALLOCATED)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(tensors))
    assert machine.peak_memory() == pytest.approx(planned.peak, abs=2)
    assert planned.process == CONTEXT + cost.ALLOCATED


def test_the_help_names_every_card(capsys):
    from fasttune.cli import main

    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert [key for key in GPUS if key not in shown] == []
