"""`templates new`: what it writes works as it is, and its test can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from fasttune import FasttuneError, check_template, load_plugin
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.scaffold import scaffold
from tests.conftest import cli


def run_pytest(folder):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["mine", "my-own_2", "template", "none"])
def test_a_new_template_keeps_the_contract(tmp_path, phi2_tokenizer, name):
    paths = scaffold(name, "plugin", tmp_path / "new", load_plugins()).files
    assert paths == [tmp_path / f"new/{name}.py", tmp_path / f"new/test_{name}.py"]
    template = load_plugin(paths[0]).template(name)
    results = check_template(template, phi2_tokenizer)
    assert {result.status for result in results} == {"ok", "info"}
    assert len(paths[0].read_text().splitlines()) < 25
    for path in paths:  # a plugin and its test need the face alone
        assert re.findall(r"fasttune[.\w]*", path.read_text()) == ["fasttune"]


@pytest.mark.slow
def test_its_test_passes_and_fails_with_the_template(tmp_path):
    plugin, _ = scaffold("my-own", "plugin", tmp_path, load_plugins()).files
    passed = run_pytest(tmp_path)
    assert passed.returncode == 0 and "2 passed" in passed.stdout, passed.stdout
    text = plugin.read_text()
    for old, new, failures in (
        ("### Answer:\\n", "### Answer: ", 2),
        ('learn("response", "{output}")', 'learn("response", "{output}.")', 1),
        ('learn("response", "{output}")', 'learn("r", "{output}")', 1),
    ):
        assert old in text
        plugin.write_text(text.replace(old, new))
        run = run_pytest(tmp_path)
        assert run.returncode == 1 and f"{failures} failed" in run.stdout, run.stdout


def test_the_files_are_found_as_one_plugin(tmp_path):
    scaffold("mine", "plugin", tmp_path, load_plugins())
    plugins = load_plugins(tmp_path)
    assert plugins.template("mine").name == "mine" and plugins.problems == []


@pytest.mark.parametrize("name", ["", "Mine", "2nd", "-x", "a b", "é", "a/b", "test_x", "conftest"])
def test_a_name_that_is_not_valid(tmp_path, name):
    with pytest.raises(FasttuneError, match="no name for a template"):
        scaffold(name, "plugin", tmp_path, load_plugins())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["alpaca", "answers"])
def test_a_name_that_a_template_or_a_plugin_has(tmp_path, name):
    with pytest.raises(FasttuneError) as caught:
        scaffold(name, "plugin", tmp_path, load_plugins(), force=True)
    assert "is taken" in caught.value.message and f"{name}.py" in caught.value.where
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py"])
def test_existing_files_are_kept_without_force(tmp_path, existing):
    (tmp_path / existing).write_text("# mine")
    with pytest.raises(FasttuneError, match="the file exists"):
        scaffold("mine", "plugin", tmp_path, load_plugins())
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "# mine"
    scaffold("mine", "plugin", tmp_path, load_plugins(), force=True)
    assert "# mine" not in (tmp_path / existing).read_text()


def test_force_replaces_a_plugin_that_is_loaded_from_that_very_file(tmp_path):
    scaffold("mine", "plugin", tmp_path, load_plugins())
    with pytest.raises(FasttuneError, match="the file exists"):
        scaffold("mine", "plugin", tmp_path, load_plugins(tmp_path))
    assert len(scaffold("mine", "plugin", tmp_path, load_plugins(tmp_path), force=True).files) == 2


def test_nothing_half_written_is_left(tmp_path):
    scaffold("mine", "plugin", tmp_path, load_plugins())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "test_mine.py"]


@pytest.mark.slow
def test_a_package_is_built_installed_and_found_without_a_network(tmp_path):
    written = scaffold("my-own", "package", tmp_path, load_plugins()).files
    home = tmp_path / "fasttune-my-own"
    assert sorted(str(path.relative_to(home)) for path in written) == [
        "README.md", "pyproject.toml", "src/fasttune_my_own.py", "tests/test_fasttune_my_own.py",
    ]  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, home]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    assert built.name == "fasttune_my_own-0.1.0-py3-none-any.whl"
    site = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", site, built]
    subprocess.run(install, check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    program = "from fasttune.cli import main; main(['templates', 'list', '--json'])"
    listed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, env=environment
    )
    (found,) = [t for t in json.loads(listed.stdout) if t["name"] == "my-own"]
    assert (found["distribution"], found["version"]) == ("fasttune-my-own", "0.1.0")
    assert found["path"] == str(site / "fasttune_my_own.py")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", home / "tests"]
    done = subprocess.run(tests, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_a_package_is_not_written_over_another(tmp_path):
    scaffold("mine", "package", tmp_path, load_plugins())
    with pytest.raises(FasttuneError, match="the file exists"):
        scaffold("mine", "package", tmp_path, load_plugins())
    with pytest.raises(FasttuneError, match="is taken"):
        scaffold("alpaca", "package", tmp_path, load_plugins())
    assert [path.name for path in tmp_path.iterdir()] == ["fasttune-mine"]
    ended = cli("templates", "new", "mine", "--package", "-o", tmp_path, "--force")
    assert ended.status == 0 and f"pip install -e {tmp_path / 'fasttune-mine'}" in ended.out
