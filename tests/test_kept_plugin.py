"""A run keeps the source of its template's plugin, and is found and used without it."""

from __future__ import annotations

import json
import shutil

import pytest

from fasttune import FasttuneError
from fasttune.config import load_config
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, create_run, find_run
from tests.conftest import cli, listening, tiny_model
from tests.test_runs import FACTS

MINE = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from _{helper} import QUESTION
from fasttune import Template, given, hookimpl, learn

class Mine(Template):
    name = "mine"

    def segments(self, row):
        yield given("question", QUESTION + row["instruction"])
        yield learn("answer", row.get("output", ""))

@hookimpl
def register_templates():
    return [Mine()]
"""


@pytest.fixture(autouse=True)
def own_config_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def project(tmp_path):
    """A config with a plugin of two files beside it."""
    folder = tmp_path / "project"
    (folder / "plugins").mkdir(parents=True)
    helper = f"words_{tmp_path.name.replace('-', '_')}"
    (folder / "plugins/mine.py").write_text(MINE.format(helper=helper))
    (folder / f"plugins/_{helper}.py").write_text('QUESTION = "Q: "\n')
    (folder / "plugins/other.py").write_text("from fasttune import hookimpl\n")
    (folder / "run.yaml").write_text("template: mine\n")
    return folder


def train(project, output) -> Run:
    """A run of that config, as far as its folder is made."""
    loaded = load_plugins(config=project / "run.yaml", trust=True)
    facts = FACTS | {"template": loaded.identity("mine").as_dict()}
    config = load_config(project / "run.yaml", [("output", str(output))])
    return create_run(config, "model", facts, loaded.templates["mine"][1])


@pytest.fixture
def run(project, tmp_path) -> Run:
    """A run whose project is gone."""
    made = train(project, tmp_path / "runs")
    shutil.rmtree(project)
    return made


def test_the_source_is_kept_with_what_it_imports(run):
    names = sorted(path.name for path in run.plugin.iterdir())
    assert names[0] == "SHA256SUMS" and names[1].startswith("_words_") and names[2:] == ["mine.py"]
    assert "mine" not in load_plugins().templates
    found = run.with_template(load_plugins())
    run.check_template(found.identity("mine"))
    assert found.template("mine").prompt({"instruction": "Why?"}) == "Q: Why?"
    assert {*load_plugins().templates} < {*found.templates} and found.problems == []


def test_a_template_that_is_there_is_taken_and_refused_where_it_renders_otherwise(run):
    file = run.folder.parent / "mine.py"
    file.write_text(MINE.split("from _")[0] + 'QUESTION = "Ask: "\n' + MINE.split("QUESTION\n")[1])
    loaded = load_plugins(files=[file])
    assert run.with_template(loaded) is loaded
    with pytest.raises(FasttuneError, match="renders otherwise") as caught:
        run.check_template(loaded.identity("mine"))
    assert f"as it was: {run.plugin / 'mine.py'}" in caught.value.hint


def test_a_changed_copy_does_not_run(run):
    (run.plugin / "mine.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(FasttuneError, match=r"is damaged: mine\.py is not what was written"):
        run.with_template(load_plugins(trust=True))


def test_a_copy_that_was_changed_with_its_seal_is_asked_about(run):
    from fasttune.files import seal

    ran = run.folder / "ran"
    text = (run.plugin / "mine.py").read_text()
    (run.plugin / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n{text}")
    run.update({"plugin_sha256": seal(run.plugin)})
    with pytest.raises(FasttuneError, match="plugins kept in the run run as code") as caught:
        run.with_template(load_plugins())
    assert caught.value.where == str(run.plugin.resolve() / "mine.py") and not ran.exists()
    asked = []
    assert (
        "mine"
        in run.with_template(
            load_plugins(trust=lambda files: asked.extend(files) or True)
        ).templates
    )
    assert ran.exists() and [file.name for file in asked] == ["mine.py"]


def test_the_run_of_somebody_else_is_asked_about(run, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("another")))
    ended = cli("preview", run.folder)
    assert ended.status == 2 and "plugins kept in the run run as code" in ended.err
    assert "--trust-plugins" in ended.err


def test_plugins_that_are_left_out_stay_out(run, monkeypatch):
    monkeypatch.setenv("FASTTUNE_PLUGINS", "alpaca")
    loaded = load_plugins()
    assert run.with_template(loaded) is loaded


def test_a_copy_that_needs_its_package_says_so(run):
    (run.plugin / "mine.py").write_text("from .sibling import Mine\n")
    from fasttune.files import seal

    template = {**run.manifest["template"], "distribution": "fasttune-mine", "version": "1.2"}
    run.update({"template": template, "plugin_sha256": seal(run.plugin)})
    with pytest.raises(FasttuneError, match="'mine' is not installed") as caught:
        run.with_template(load_plugins(trust=True))
    assert caught.value.hint == "pip install fasttune-mine==1.2"


def test_a_resumed_run_keeps_what_it_goes_on_with(run):
    found = run.with_template(load_plugins())
    provider = found.templates["mine"][1]
    facts = {**FACTS, "template": found.identity("mine").as_dict()}
    run.go_on(run.config, facts, provider)
    assert (run.plugin / "mine.py").is_file()
    assert "mine" in run.with_template(load_plugins()).templates


def test_to_go_on_with_a_run_is_no_consent_to_what_lies_in_it(tmp_path):
    """A stranger's run of a built-in format, whose copy says something else, with its seal."""
    from fasttune.files import seal, sha256
    from fasttune.plugins.discovery import user_config_dir

    loaded = load_plugins()
    facts = {**FACTS, "template": loaded.identity("reasoning").as_dict()}
    provider = loaded.templates["reasoning"][1]
    config = load_config(None, [("output", str(tmp_path / "runs"))])
    run = create_run(config, "model", facts, provider)
    (run.plugin / "reasoning.py").write_text("raise SystemExit('a stranger')\n")
    run.update({"plugin_sha256": seal(run.plugin)})
    run.go_on(run.config, facts, provider)
    agreed = json.loads((user_config_dir() / "trusted-plugins.json").read_text())
    assert sha256(run.plugin / "reasoning.py") not in agreed


def test_a_server_has_the_kept_format(run, monkeypatch):
    from fasttune.serving import serve as serving

    taken = []

    def stop(run, form, plugins):
        taken.append(plugins)
        raise FasttuneError("far enough")

    monkeypatch.setattr(serving, "exported", stop)
    with (
        pytest.raises(FasttuneError, match="far enough"),
        serving.serve(run, load_plugins(), port=0),
    ):
        pass
    assert taken[0].template("mine").prompt({"instruction": "Why?"}) == "Q: Why?"


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
    assert run.manifest["status"] == "running" and "will not know this run" in said[0]


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
    assert ended.status == 2 and "cannot be removed" in ended.err
    assert run.manifest["status"] == "running" and run.config_file.lora.r == 16


# With a model


def test_a_run_trained_beside_its_config_is_used_without_it(
    project, tmp_path, tmp_path_factory, monkeypatch, phi2_tokenizer
):
    model = tiny_model(
        "llama", phi2_tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    ended = cli(
        "run", "-c", project / "run.yaml", "-m", model, "-o", tmp_path / "runs", "data.limit=40",
        "train.max_steps=1", "samples.count=0", "--trust-plugins",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    ended = cli("generate", "last", "Why?", "--max-new-tokens", "2", "--json")
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == "Q: Why?"
    ended = cli("preview", "last", "--json")
    assert ended.status == 0 and [s["name"] for s in json.loads(ended.out)[0]["sections"]][0] == (
        "question"
    )
    assert cli("export", "last", "--to", "adapter", "--no-verify").status == 0
    run = find_run("last")
    assert (run.folder / "exports/adapter/adapter_config.json").is_file()
    from fasttune.comparison.finished import plan_runs
    from fasttune.comparison.plan import Measuring

    with pytest.raises(FasttuneError, match="there is nothing to compare with"):
        plan_runs([run], Measuring(), load_plugins())  # what comes before has passed
    run.update({"status": "interrupted"})
    shutil.rmtree(run.adapter)
    assert cli("run", "--resume", run.folder).status == 0
    assert run.manifest["status"] == "done"
