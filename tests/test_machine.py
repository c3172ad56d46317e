"""As many threads as other programs leave cores."""

import pytest
import torch

from fasttune import machine
from fasttune.machine import Threads
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
