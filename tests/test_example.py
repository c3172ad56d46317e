"""The examples: a package, whose wheel is built, installed and found, and a file; both pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fasttune.plugins.discovery import load_plugins
from tests.conftest import cli

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "fasttune-vicuna"


def run(*arguments, path=None):
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fasttune(*arguments, path):
    program = "from fasttune.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but the example's wheel installed into it."""
    folder = tmp_path_factory.mktemp("example")
    # setuptools builds inside the source tree.
    source = shutil.copytree(
        EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    pip = ("pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == "fasttune_vicuna-1.0.0-py3-none-any.whl"
    run(*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


def test_the_installed_package_is_found_with_its_distribution(site):
    (vicuna,) = [
        t for t in fasttune("templates", "list", "--json", path=site) if t["name"] == "vicuna"
    ]
    assert (vicuna["distribution"], vicuna["version"]) == ("fasttune-vicuna", "1.0.0")
    assert vicuna["path"] == str(site / "fasttune_vicuna.py")
    plugins = fasttune("plugins", "--json", path=site)
    assert plugins["problems"] == []
    (vicuna,) = [p for p in plugins["plugins"] if p["name"] == "vicuna"]
    assert vicuna["provides"] == ["template vicuna"]


def test_its_template_keeps_the_contract(site, tmp_path, phi2_tokenizer):
    phi2_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi"}))
    (checked,) = fasttune("templates", "check", "vicuna", "--model", tmp_path, "--json", path=site)
    assert checked["passed"]
    assert {check["status"] for check in checked["checks"]} == {"ok", "info"}


def test_its_own_tests_pass_against_the_installed_package(site):
    out = run("pytest", site.parent / "source/tests", path=site)
    assert "4 passed" in out


def test_the_system_text_in_the_language_of_the_row():
    file = Path(__file__).parents[1] / "examples" / "own_language.py"
    template = load_plugins(files=[file]).template("own-language")
    asked = {"instruction": "Combien ?", "language": "fr"}
    assert template.prompt(asked).startswith("<|system|>Tu es un assistant")
    assert template.prompt({"instruction": "Hi"}).startswith("<|system|>You are AI assistant")
    assert template.prompt({**asked, "system": "Un mot."}).startswith("<|system|>Un mot.\n")
    assert cli("--plugin", file, "templates", "check", "own-language").status == 0
