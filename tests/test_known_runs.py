"""Where runs are found, comparing their settings, and removing them."""

from __future__ import annotations

import json
import shutil

import pytest

from fasttune import FasttuneError
from fasttune.config import load_config
from fasttune.runs import Run, create_run, find_run
from tests.conftest import cli, listening
from tests.test_runs import FACTS

# Where runs are


def test_last_is_the_newest_wherever_it_was_written(tmp_path, monkeypatch):
    runs = []
    for number, name in enumerate(["a", "b", "c"]):
        config = load_config(None, [("output", str(tmp_path / name / "runs"))])
        runs.append(create_run(config, "model", FACTS))
        runs[-1].update({"started": f"2026-01-0{number + 1}T00:00:00+00:00"})
    monkeypatch.chdir(tmp_path / "a")
    with listening() as said:
        assert find_run("last").folder == runs[2].folder
    assert said == [f"the last run is {runs[2].folder}"]
    assert find_run("last", tmp_path / "b" / "runs").name == runs[1].name
    (runs[2].folder / "manifest.json").write_text("[")
    assert find_run("last").folder == runs[1].folder
    shutil.rmtree(tmp_path / "b")
    assert find_run("last").folder.resolve() == runs[0].folder
    assert cli("runs", "show", "last").status == 0


@pytest.mark.parametrize("text", ["", "[1]", '["/nowhere/at all"]', "{"])
def test_an_index_that_is_damaged_is_made_anew(text, tmp_path, monkeypatch):
    from fasttune.files import state_dir

    monkeypatch.chdir(tmp_path)
    state_dir().mkdir(parents=True)
    (state_dir() / "runs.json").write_text(text)
    with pytest.raises(FasttuneError, match="there is no run 'last'"):
        find_run("last")
    run = create_run(load_config(None, [("output", str(tmp_path / "x"))]), "model", FACTS)
    assert find_run("last") == run


def test_a_state_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with listening() as said:
        run = create_run(load_config(None, [("output", str(tmp_path / "x"))]), "model", FACTS)
    assert run.manifest["status"] == "running" and "cannot note this run" in said[0]


# Comparing settings, removing


@pytest.fixture
def two(tmp_path, monkeypatch) -> list[Run]:
    monkeypatch.chdir(tmp_path)
    return [
        create_run(load_config(None, [("lora.r", r)]), "model", {**FACTS, "model": model})
        for r, model in ((16, "model"), (8, "other"))
    ]


def test_runs_compare_shows_what_differs(two):
    ended = cli("runs", "compare", *(run.name for run in two), "--json")
    found = json.loads(ended.out)
    assert found["differences"] == {"lora.r": [16, 8], "model.name": ["model", "other"]}
    assert found["results"]["status"] == ["running", "running"]
    shown = cli("runs", "compare", *(run.name for run in two)).out
    assert "lora.r" in shown and "learning_rate" not in shown
    assert cli("runs", "compare", two[0].name, two[0].folder).status == 2


def test_runs_rm_asks_and_removes_wholly(two):
    first, second = two
    ended = cli("runs", "rm", first.name)
    assert ended.status == 2 and "nothing was removed" in ended.err and first.folder.is_dir()
    ended = cli("runs", "rm", first.name, "none", "--yes")
    assert ended.status == 2 and first.folder.is_dir()
    with second.locked():
        ended = cli("runs", "rm", first.name, second.name, "--yes")
    assert ended.status == 2 and "is being trained" in ended.err and first.folder.is_dir()
    assert cli("runs", "rm", second.name, "--yes").status == 0
    assert [path.name for path in first.folder.parent.iterdir()] == [first.name]
    assert find_run("last").name == first.name
    assert cli("runs", "rm", "last", "-y").status == 0 and not [*first.folder.parent.iterdir()]


def test_a_run_that_cannot_be_removed_stays_whole(two, monkeypatch):
    run = two[0]

    def refuse(self, target):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    ended = cli("runs", "rm", run.name, "--yes")
    assert ended.status == 2 and "cannot remove run" in ended.err
    assert run.manifest["status"] == "running"
    assert load_config(run.folder / "config.yaml").lora.r == 16
