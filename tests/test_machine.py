"""As many threads as other programs leave cores."""

import pytest
import torch

from fasttune import machine
from fasttune.errors import FasttuneError
from fasttune.machine import Threads
from fasttune.models.tokenizer import resolve_model
from tests.conftest import listening


class Machine:
    """Four cores and a torch with as many threads; time passes when a test says so."""

    def __init__(self, monkeypatch):
        self.now, self.all, self.own, self.set = 0.0, 0.0, 0.0, 4
        monkeypatch.setattr(machine, "_worked", lambda: (self.now, self.all, self.own))
        monkeypatch.setattr(machine, "_cores", lambda: [0, 1, 2, 3])
        monkeypatch.setattr(machine.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.set)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "set", count))
        for name in Threads.SETTLED:
            monkeypatch.delenv(name, raising=False)

    def passes(self, seconds, own, others):
        self.now += seconds
        self.own += own * seconds
        self.all += (own + others) * seconds


@pytest.fixture
def cores(monkeypatch):
    return Machine(monkeypatch)


def test_threads_follow_what_others_leave(cores):
    threads = Threads()
    with listening() as said:
        found = []
        for others in (0.1, 1.0, 2.9, 7.0, 0.4, 0.0):
            cores.passes(1.0, own=1.0, others=others)
            threads.adapt()
            found.append(cores.set)
    assert found == [4, 3, 1, 1, 4, 4]
    assert said == ["other programs take 1.0 of 4 cores: 3 instead of 4 threads"]


def test_a_training_keeps_one_number_of_threads(cores):
    threads = Threads()
    cores.passes(1.0, own=1.0, others=2.0)
    with threads.settled() as count:
        assert count == cores.set == 2
        cores.passes(1.0, own=1.0, others=0.0)
        threads.adapt()
        assert cores.set == 2
    threads.adapt()
    assert cores.set == 4
    with threads.settled(2) as count:  # resumed
        assert count == cores.set == 2
    with threads.settled(9) as count:  # begun on a larger machine
        assert count == cores.set == 4


def test_a_look_takes_its_time(cores):
    threads = Threads()
    cores.passes(0.3, own=1.0, others=3.0)
    threads.adapt()
    assert cores.set == 4
    cores.passes(0.3, own=1.0, others=3.0)
    threads.adapt()
    assert cores.set == 1


@pytest.mark.parametrize("name", Threads.SETTLED)
def test_what_the_person_has_set_stays(cores, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    threads = Threads()
    cores.passes(1.0, own=1.0, others=3.0)
    threads.adapt()
    assert cores.set == 4


def test_threads_that_were_set_in_between_stay(cores):
    threads = Threads()
    cores.passes(1.0, own=1.0, others=1.0)
    threads.adapt()
    torch.set_num_threads(2)
    cores.passes(1.0, own=1.0, others=3.0)
    threads.adapt()
    assert cores.set == 2


def test_what_the_kernel_counts():
    before = machine._worked()
    sum(range(3_000_000))
    after = machine._worked()
    passed, all_, own = (new - old for new, old in zip(after, before, strict=True))
    assert 0 < own <= passed + 0.02 and all_ > -0.01
    assert machine._cores()


# A GPU that torch cannot use


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A driver's own words about itself, of a version to choose."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")

    def write(version):
        (tmp_path / "version").write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu Jan 30 17:11:26 UTC "
            "2025\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
        )

    return write


@pytest.mark.parametrize(
    ("cuda", "version", "fix"),
    [
        (None, "580.65.06", "install a build of torch with CUDA"),
        ("13.0", "535.183.01", "update the driver to 580 or newer, or install a build of torch"),
        ("13.0", "580.65.06", "reinstall torch in a build that fits the driver"),
    ],
)
def test_a_driver_that_torch_cannot_use_is_an_error(driver, monkeypatch, cuda, version, fix):
    driver(version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(FasttuneError) as caught:
        machine.this_device()
    assert f"driver {version}, torch {torch.__version__}" in caught.value.where
    assert fix in caught.value.hint
    with pytest.raises(FasttuneError):  # and the demo model is not taken instead
        resolve_model(None)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.this_device().kind == "cpu"


@pytest.mark.parametrize(
    ("capability", "usable"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
    ],
)
def test_a_gpu_without_kernels_in_torch_is_an_error(monkeypatch, capability, usable):
    kernels = [
        "sm_75",
        "sm_80",
        "sm_86",
        "sm_90",
        "sm_100",
        "sm_120",
        "compute_120",
    ]  # torch 2.14.1
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: kernels)
    problem = machine.gpu_problem()
    assert (problem is None) is usable
    if problem:
        assert "Some GPU, compute capability 7.0" in problem.where and "sm_75" in problem.where
