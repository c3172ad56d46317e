"""A format of one's own from beginning to end: trained by a plugin file, then used without it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fasttune import FasttuneError
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, find_run
from tests.conftest import cli, rows, tiny_model, write_rows

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
PLAIN = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
PROMPT = "### Question:\nWhy?\n\n### Answer:\n"
COMPUTED = """
from fasttune import Segment, Template, hookimpl

class Shout(Template):
    def segments(self, row):
        yield Segment("ask", f"Q: {row['instruction'].upper()}\\nA:", train=False)
        yield Segment("response", f" {row.get('output', '')}", train=True)

    def parse(self, text):
        return {"response": text.removeprefix(" ")}

@hookimpl
def register_templates():
    return [Shout(name="shout")]
"""
JINJA = "Q: {{ messages[-1]['content']|upper }}\nA:"


@pytest.fixture(scope="module")
def model(phi2_tokenizer) -> Path:
    return tiny_model(
        "llama", phi2_tokenizer, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_config_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def train(model: Path, plugin: Path | str, template: str, output: Path, *more: object):
    """The command, and the run that it made."""
    ended = cli(
        "run", "--plugin", plugin, "-t", template, "-m", model, "-o", output, "train.max_steps=2",
        "samples.count=0", "data.eval_fraction=0.2", *more,
    )  # fmt: skip
    runs = [*output.glob("*/manifest.json")] if output.is_dir() else []
    return ended, Run(runs[-1].parent) if runs else None


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Run:
    """Two runs whose plugin, rows and config are gone. The one that is given has been changed to
    hold plugins that must not run."""
    project, output = (tmp_path_factory.mktemp(name) for name in ("project", "output"))
    plugin = write(project / "plain.py", PLAIN)
    data = write_rows(project / "rows.jsonl", rows(40))
    for rank in (4, 8):
        ended, run = train(
            model, plugin, "plain", output / str(rank), f"data.train={data}", f"lora.r={rank}"
        )
        assert ended.status == 0, ended.err
    shutil.rmtree(project)
    return run


@pytest.fixture
def elsewhere(trained, tmp_path, monkeypatch):
    """Another folder, with plugins in it and in the run; whether any of their code ran."""
    marker = tmp_path / "ran"
    trap = f"open({str(marker)!r}, 'w')\n{PLAIN.replace('Question', 'Trap')}"
    here = tmp_path / "here"
    traps = [
        write(folder / name, trap)
        for folder in (here, trained.folder)
        for name in ("plain.py", "plugins/plain.py", "plugin/plain.py", "formats/plain.py")
    ]
    monkeypatch.chdir(here)
    yield here
    assert not marker.exists(), "a plugin ran that nobody named"
    for file in traps:
        file.unlink()


@pytest.mark.parametrize(
    ("plugin", "imports"),
    [("plain.py", "import torch, numpy\n"), ("../plain.py", "import torch\n"), ("B/plain.py", "")],
)
def test_the_plugin_of_the_readme_works_from_any_folder(
    plugin, imports, model, tmp_path, monkeypatch
):
    here = tmp_path / "a/project"
    file = Path(plugin.replace("B/", f"{tmp_path}/b/"))
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    write(file, imports + PLAIN)
    data = write_rows(here / "rows.jsonl", rows(10))
    ended, run = train(model, file, "plain", here / "runs", "--data", data)
    assert ended.status == 0, ended.err
    assert run.manifest["status"] == "done"
    assert not [*run.folder.rglob("*.py")], "a run holds no code"
    facts = run.manifest["template"]
    assert facts["path"] == str(file.resolve()) and facts["declaration"]["parts"] == [
        {"given": "question", "text": "### Question:\n{instruction}\n\n### Answer:\n"},
        {"learn": "answer", "text": "{output}"},
    ]
    assert json.loads((run.adapter / "template.json").read_text()) == facts


def test_it_is_generated_from(trained, elsewhere):
    ended = cli("generate", trained.folder, "Why?", "--max-new-tokens", "2", "--json")
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == PROMPT, ended.err
    assert "plain" not in load_plugins().templates


def test_it_is_exported(trained, elsewhere):
    ended = cli("export", trained.folder, "--to", "merged", "-o", elsewhere / "merged")
    assert ended.status == 0, ended.err
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(elsewhere / "merged")
    asked = [{"role": "user", "content": "Why?"}]
    written = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert written == PROMPT
    verified = json.loads((elsewhere / "merged/verification.json").read_text())
    assert verified["verified"] is True
    ended = cli(
        "export", trained.folder, "--to", "adapter", "-o", elsewhere / "adapter", "--no-verify"
    )
    assert ended.status == 0, ended.err
    kept = json.loads((elsewhere / "adapter/template.json").read_text())
    assert kept["declaration"] == trained.manifest["template"]["declaration"]


def test_it_is_compared_and_evaluated_on_the_rows_that_it_kept(trained, elsewhere):
    other = find_run("last", trained.folder.parents[1] / "4")
    assert [*trained.held_out()] == [*other.held_out()]
    assert len(trained.held_out()) == trained.manifest["data"]["eval_rows"] > 0
    few = ("--rows", 2, "--max-new-tokens", 2)
    ended = cli("evaluate", trained.folder, *few, "--json")
    assert ended.status == 0, ended.err
    ended = cli("compare", trained.folder, other.folder, *few, "--no-include-base", "-o", "c")
    assert ended.status == 0, ended.err


def test_it_is_served(trained, elsewhere, monkeypatch):
    from fasttune.serving import serve as serving

    taken = []

    def stop(run, form, plugins):
        taken.append(run.template(plugins))
        raise FasttuneError("far enough")

    monkeypatch.setattr(serving, "exported", stop)
    with (
        pytest.raises(FasttuneError, match="far enough"),
        serving.serve(trained, plugins=load_plugins(), port=0),
    ):
        pass
    assert taken[0].prompt({"instruction": "Why?"}) == PROMPT


def test_an_interrupted_run_is_resumed_without_its_plugin_and_rows(model, tmp_path, monkeypatch):
    plugin = write(tmp_path / "project/plain.py", PLAIN)
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    more = ("--data", data, "train.save_steps=1", "train.batch_size=8")
    ended, run = train(model, plugin, "plain", tmp_path / "runs", *more)
    assert ended.status == 0, ended.err
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    shutil.rmtree(plugin.parent)
    data.unlink()
    shutil.rmtree(run.adapter)
    shutil.rmtree(run.checkpoints / "checkpoint-2")
    run.update({"status": "interrupted"})
    monkeypatch.chdir(tmp_path.parent)
    ended = cli("preview", run.folder, "--json")
    assert ended.status == 0, ended.err
    sections = [section["name"] for section in json.loads(ended.out)[0]["sections"]]
    assert sections == ["question", "answer", "eos"]
    ended = cli("run", "--resume", run.folder)
    assert ended.status == 0, ended.err
    assert run.manifest["status"] == "done" and run.manifest["template"]["path"] == str(plugin)
    assert [line["loss"] for line in run.metrics() if "loss" in line] == pytest.approx(losses)


def test_a_plugin_that_declares_something_else_is_used_only_with_force(trained, tmp_path):
    plugin = write(tmp_path / "plain.py", PLAIN.replace("Question", "Ask"))
    command = ("generate", trained.folder, "Why?", "--max-new-tokens", "1", "--json")
    ended = cli("--plugin", plugin, *command)
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == PROMPT
    assert f"'plain' is not what run '{trained.name}' was trained with" in ended.err
    assert "part 1: {'given': 'question', 'text': '### Question:" in ended.err
    assert "became {'given': 'question', 'text': '### Ask:" in ended.err
    ended = cli("--plugin", plugin, *command, "--force")
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == PROMPT.replace(
        "Question", "Ask"
    )
    write(plugin, PLAIN)
    ended = cli("--plugin", plugin, *command)
    assert ended.status == 0 and "is not what run" not in ended.err


# Formats whose text is computed


@pytest.fixture(scope="module")
def computed(model, tmp_path_factory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("computed")
    plugin = write(folder / "shout.py", COMPUTED)
    data = write_rows(folder / "rows.jsonl", rows(20))
    ended, run = train(model, plugin, "shout", folder / "runs", "--data", data)
    assert ended.status == 0, ended.err
    return run, plugin


def test_a_computed_format_needs_its_plugin(computed, tmp_path, monkeypatch):
    run, plugin = computed
    assert run.manifest["template"]["declaration"] is None
    monkeypatch.chdir(tmp_path)
    command = ("generate", run.folder, "Why?", "--max-new-tokens", "1", "--json")
    for words in (command, ("preview", run.folder), ("export", run.folder, "--to", "adapter")):
        ended = cli(*words)
        assert ended.status == 2 and "computes its text, so it needs its plugin" in ended.err
        assert f"add --plugin {plugin}" in ended.err
    ended = cli("--plugin", plugin, *command)
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == "Q: WHY?\nA:"


def test_changed_code_is_refused_without_force(computed, tmp_path):
    run, _ = computed
    changed = write(tmp_path / "shout.py", COMPUTED.replace("A:", "B:"))
    command = ("--plugin", changed, "generate", run.folder, "Why?", "--max-new-tokens", "1")
    ended = cli(*command)
    assert ended.status == 2 and "the code of template 'shout' has changed" in ended.err
    assert str(changed) in ended.err and "--force" in ended.err
    ended = cli(*command, "--json", "--force")
    assert ended.status == 0 and json.loads(ended.out)["prompt"] == "Q: WHY?\nB:"


def test_it_is_exported_without_a_chat_template(computed, tmp_path):
    run, plugin = computed
    ended = cli("--plugin", plugin, "export", run.folder, "--to", "merged", "-o", tmp_path / "out")
    assert ended.status == 0, ended.err
    assert "without a chat template: template 'shout' computes its text" in ended.err
    assert not (tmp_path / "out/chat_template.jinja").exists()
    assert json.loads((tmp_path / "out/verification.json").read_text())["verified"] is True
    assert "Q: WHAT IS THE HIGHEST MOUNTAIN IN JAPAN?" in (tmp_path / "out/README.md").read_text()


def test_or_with_its_own(computed, tmp_path):
    run, _ = computed
    text = COMPUTED.replace('name="shout"', f'name="shout", chat_template={JINJA!r}')
    plugin = write(tmp_path / "shout.py", text)
    copied = Run(shutil.copytree(run.folder, tmp_path / "run"))
    identity = load_plugins(files=[plugin]).template("shout").identity
    copied.update({"template": {**copied.manifest["template"], "identity": identity}})
    ended = cli("--plugin", plugin, "export", copied.folder, "--to", "merged", "-o", tmp_path / "o")
    assert ended.status == 0, ended.err
    assert (tmp_path / "o/chat_template.jinja").read_text() == JINJA
    assert json.loads((tmp_path / "o/verification.json").read_text())["verified"] is True


# What fails in a plugin


FAILING = {
    "segments": (
        COMPUTED.replace(
            'yield Segment("ask"',
            "1 / len(row['instruction'][100:])\n        yield Segment(\"ask\"",
        ),
        "template 'shout' fails: ZeroDivisionError",
        "line 6: 1 / len(row['instruction'][100:])",
    ),
    "a callback": (
        COMPUTED
        + """
@hookimpl
def training_callbacks(run):
    from transformers import TrainerCallback
    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyError("step")
    return [Note()]
""",
        "plugin 'shout' fails: KeyError: 'step'",
        'line 21: raise KeyError("step")',
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_what_fails_while_training_names_file_and_line(kind, model, tmp_path):
    text, message, line = FAILING[kind]
    plugin = write(tmp_path / "shout.py", text)
    data = write_rows(tmp_path / "rows.jsonl", rows(10))
    ended, run = train(model, plugin, "shout", tmp_path / "runs", "--data", data)
    assert ended.status == 2 and message in ended.err, ended.err
    assert f"where: {plugin}, {line}" in ended.err
    assert run is None or run.manifest["status"] == "failed"


def test_an_exporter_that_fails_names_file_and_line(trained, tmp_path):
    plugin = write(
        tmp_path / "mine.py",
        """from fasttune import Exporter, hookimpl
class Mine(Exporter):
    name = "mine"
    def write(self, job):
        job.write_adapter(job.folder)
        raise ValueError(job.template.prompt({"instruction": "Why?"}))
@hookimpl
def register_exporters():
    return [Mine()]
""",
    )
    ended = cli(
        "--plugin", plugin, "export", trained.folder, "--to", "mine", "-o", tmp_path / "out"
    )
    assert ended.status == 2 and "plugin 'mine' fails: ValueError: ### Question: Why?" in ended.err
    assert f"where: {plugin}, line 6: raise ValueError" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
