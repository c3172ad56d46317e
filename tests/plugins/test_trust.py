"""Whose plugins run: those that are named, and those beside a config that a person agreed to."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import py_compile
import stat
import sys
from pathlib import Path

import pytest

from fasttune import FasttuneError
from fasttune.api import load_plugins as load_for_python
from fasttune.files import sha256
from fasttune.plugins.discovery import load_plugins, user_config_dir
from fasttune.plugins.trust import printable
from tests.conftest import cli, rows, write_rows

MINE = """
from pathlib import Path
Path(__file__).parents[1].joinpath("ran").touch()
from fasttune import Template, given, hookimpl, learn

class Mine(Template):
    name = "mine"

    def segments(self, row):
        yield given("instruction", row["instruction"])
        yield learn("response", row.get("output", ""))

@hookimpl
def register_templates():
    return [Mine()]
"""


@pytest.fixture(autouse=True)
def own_config_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def config(tmp_path) -> Path:
    """A config with a plugin beside it, and rows that no template can use: nothing is trained."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text(MINE)
    write_rows(tmp_path / "rows.jsonl", [{**rows(1)[0], "output": ""}])
    path = tmp_path / "run.yaml"
    path.write_text(f"template: mine\ndata: {{train: {tmp_path / 'rows.jsonl'}}}\n")
    return path


class Terminal(io.StringIO):
    def isatty(self):
        return True


def dry_run(config, *options, answer=None, monkeypatch=None):
    """Whether the plugin ran, and how the command ended."""
    ran = config.parent / "ran"
    ran.unlink(missing_ok=True)
    if answer is not None:
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        monkeypatch.setattr(io, "StringIO", Terminal)
    ended = cli("run", "--dry-run", "-c", config, *options)
    return ran.exists(), ended


def test_plugins_beside_a_config_do_not_run_without_consent(config):
    ran, ended = dry_run(config)
    assert not ran and ended.status == 2 and ended.out == ""
    assert "plugins beside the config run as code, and you have not agreed to that" in ended.err
    assert f"where: {config.parent / 'plugins/mine.py'}" in ended.err
    assert "--trust-plugins" in ended.err
    assert not user_config_dir().exists()


def test_consent_is_kept_until_a_file_changes(config):
    ran, ended = dry_run(config, "--trust-plugins")
    assert ran and f"  {config.parent / 'plugins/mine.py'}\n" in ended.err
    record = user_config_dir() / "trusted-plugins.json"
    file = config.parent / "plugins/mine.py"
    assert json.loads(record.read_text()) == {sha256(file): str(file)}
    ran, ended = dry_run(config)
    assert ran and "run as code" not in ended.err
    file.write_text(MINE + "# edited\n")
    assert dry_run(config)[0] is False
    assert dry_run(config, "--trust-plugins")[0] is True
    assert len(json.loads(record.read_text())) == 2
    (config.parent / "plugins/_helper.py").write_text("import os")
    ran, ended = dry_run(config)
    assert not ran and "_helper.py" in ended.err and "mine.py" not in ended.err


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("yes\n", True), ("n\n", False)])
def test_a_person_is_asked_once(config, monkeypatch, answer, runs):
    ran, ended = dry_run(config, answer=answer, monkeypatch=monkeypatch)
    assert ran is runs and "run them? [y/N] " in ended.err
    assert ended.err.startswith("these files run as code:\n")
    ran, ended = dry_run(config, answer="", monkeypatch=monkeypatch)
    assert ran is runs and ("[y/N]" in ended.err) is not runs


def test_a_damaged_record_is_no_consent(config):
    dry_run(config, "--trust-plugins")
    for damage in ("", "[]", "{"):
        (user_config_dir() / "trusted-plugins.json").write_text(damage)
        assert dry_run(config)[0] is False


@pytest.mark.parametrize("how", ["--plugin", "--plugins-dir", "FASTTUNE_PLUGINS_DIR"])
def test_what_is_named_needs_no_consent(config, how, monkeypatch):
    folder = config.parent / "plugins"
    if how.startswith("--"):
        options = [how, folder / "mine.py" if how == "--plugin" else folder]
    else:
        options = []
        monkeypatch.setenv(how, str(folder))
    assert dry_run(config, *options)[0] is True
    assert not user_config_dir().exists()


def test_what_is_not_to_be_loaded_needs_no_consent(config, monkeypatch):
    monkeypatch.setenv("FASTTUNE_PLUGINS", "alpaca")
    assert "mine" not in load_plugins(config=config).providers


def test_python_needs_a_word_too(config):
    with pytest.raises(FasttuneError, match="you have not agreed"):
        load_for_python(config=config)
    assert "mine" in load_for_python(config=config, trust=True).templates
    assert "mine" in load_for_python(config=config).templates  # agreed by now
    file = config.parent / "plugins/mine.py"
    file.write_text(MINE + "#")
    asked = []
    with pytest.raises(FasttuneError, match="you have not agreed"):
        load_for_python(config=config, trust=lambda files: asked.append(files) or False)
    assert asked == [[file]]
    assert "mine" in load_for_python(files=[file]).templates


WRITABLE = {
    "the file": ("plugins/mine.py", 0o666),
    "its folder": ("plugins", 0o777),
    "its folder, as /tmp is": ("plugins", 0o1777),
}


@pytest.mark.parametrize("what", WRITABLE)
@pytest.mark.parametrize("how", ["--plugin", "--plugins-dir", "--trust-plugins"])
def test_what_everybody_may_write_is_refused(config, what, how):
    name, mode = WRITABLE[what]
    path = config.parent / name
    path.chmod(mode)
    folder = config.parent / "plugins"
    options = {"--plugin": [folder / "mine.py"], "--plugins-dir": [folder]}.get(how, [])
    ran, ended = dry_run(config, how, *options)
    assert not ran and ended.status == 2
    assert f"where: {path}\n" in ended.err and f"chmod o-w {path}" in ended.err
    path.chmod(stat.S_IMODE(mode) & ~0o1002)
    assert dry_run(config, how, *options)[0] is True


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_another_person_owns_is_refused(config):
    os.chown(config.parent / "plugins/mine.py", 12345, 12345)
    ran, ended = dry_run(config, "--trust-plugins")
    assert not ran and "another person owns" in ended.err


def test_another_owner_is_told_from_this_one_and_root(config, monkeypatch):
    found = config.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: found + 1)
    if found:
        with pytest.raises(FasttuneError, match="another person owns"):
            load_plugins(config.parent / "plugins")
    else:  # root's files are fine for everybody
        assert "mine" in load_plugins(config.parent / "plugins").providers


def test_compiled_code_beside_a_file_does_not_run(config):
    """A .pyc that says it needs no look at its source would run in its place."""
    file = config.parent / "plugins/mine.py"
    other = config.parent / "other.py"
    other.write_text("raise SystemExit('compiled')")
    cached = Path(importlib.util.cache_from_source(str(file)))
    cached.parent.mkdir()
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(other), cfile=str(cached), invalidation_mode=mode)
    plugins = load_plugins(config.parent / "plugins")
    assert "mine" in plugins.templates and plugins.problems == []


def test_names_of_files_cannot_write_to_the_terminal():
    assert printable(Path("a\x1b[2Jb.py")) == "a\\x1b[2Jb.py"


def test_a_file_whose_name_is_no_name(tmp_path):
    (tmp_path / "two words.py").write_text(MINE)
    [problem] = load_plugins(tmp_path).problems
    assert "'two words' is no name for a plugin" in problem.error
    assert not (tmp_path.parent / "ran").exists()
