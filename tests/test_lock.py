"""requirements-cuda.txt: the packages for an NVIDIA GPU are those that fasttune asks for and the
tests ran with. Whether they install and train there, no test can say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[1]
PINS = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
THERE = {
    "python_version": "3.12",
    "python_full_version": "3.12.0",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "sys_platform": "linux",
}


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {canonicalize_name(package): version for package, version in PINS.findall(text)}


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    return pins("requirements-cuda.txt")


def test_it_holds_what_fasttune_asks_for(locked):
    asked = read_configuration(ROOT / "pyproject.toml")["project"]["dependencies"]
    wanted = [*map(Requirement, asked)]
    assert all(each.marker is None or each.marker.evaluate(THERE) for each in wanted)
    unmet = [
        str(each)
        for each in wanted
        if not each.specifier.contains(locked.get(canonicalize_name(each.name), "0"))
    ]
    assert unmet == [], "make lock"


def test_it_has_the_versions_that_the_tests_ran_with(locked):
    tested = pins("constraints.txt")
    assert len(locked.keys() & tested.keys()) > 50
    other = {name: locked[name] for name in locked.keys() & tested.keys()}
    assert other == {name: tested[name] for name in other}, "make lock"


def test_torch_brings_cuda_and_every_package_its_hash(locked):
    assert {"nvidia-cublas", "nvidia-cuda-runtime", "triton"} <= locked.keys()
    text = (ROOT / "requirements-cuda.txt").read_text(encoding="utf-8")
    assert all("--hash=sha256:" in each for each in re.split(r"\n(?=[a-z])", text)[1:])
    assert "://" not in text  # from wherever pip takes its packages
