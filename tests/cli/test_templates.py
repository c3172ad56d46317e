"""`fasttune templates ...` and `fasttune plugins`, as a person and as a script sees them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fasttune.cli import main
from fasttune.formats.template import from_declaration
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.scaffold import scaffold


@pytest.fixture
def fasttune(capsys):
    """Run the command line; gives exit status, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return run


@pytest.fixture
def phi2_folder(tmp_path_factory, phi2_tokenizer):
    folder = tmp_path_factory.mktemp("phi2")
    phi2_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "phi"}))
    return folder


HEAVY = ("torch", "transformers", "unsloth", "datasets", "trl", "peft", "matplotlib", "numpy")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["templates", "--help"],
        ["templates", "list"],
        ["templates", "list", "--json"],
        ["templates", "show", "reasoning"],
        ["plugins"],
    ],
)
def test_no_heavy_import(arguments):
    program = f"""
import sys
from fasttune.cli import main
try:
    main({arguments!r})
except SystemExit as exit_:
    assert not exit_.code, exit_.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("HEAVY", heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def test_list(fasttune):
    status, out, err = fasttune("templates", "list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        "template",
        "alpaca",
        "chatml",
        "multilingual",
        "reasoning",
        "one",
    ]
    assert out.splitlines()[-1] == (
        "one turn (a row with more is refused, or its first exchange taken with data.turns=first): "
        "alpaca, multilingual, reasoning"
    )
    assert "reasoning, response" in out and "system text and tags" in out


def test_list_as_json(fasttune):
    status, out, _ = fasttune("templates", "list", "--json")
    listed = {template["name"]: template for template in json.loads(out)}
    assert status == 0 and list(listed) == ["alpaca", "chatml", "multilingual", "reasoning"]
    assert listed["reasoning"]["learns"] == ["reasoning", "response"]
    assert listed["alpaca"]["distribution"] == "fasttune"


def test_show(fasttune):
    status, out, _ = fasttune("templates", "show", "reasoning")
    assert status == 0 and load_plugins().template("reasoning").identity in out
    assert "reasoning (column reasoning), response (column output)" in out
    lines = [line.split(None, 2) for line in out.partition("\n\n")[2].splitlines()]
    rendered = [(*line[:2], line[2].strip()) for line in lines if line[0] in ("given", "learned")]
    assert rendered[0][2].startswith("<|system|>You are AI assistant who is good at")
    assert rendered[1:] == [
        ("given", "instruction", "<|instruction|>Add 2 and 3.↵"),
        ("given", "context", "<|context|>Some context, in two words.↵"),
        ("given", "reasoning", "<|reasoning|>"),
        ("learned", "reasoning", "2 + 3 = 5.↵"),
        ("learned", "response", "<|response|>5"),
        ("learned", "eos", "end of text"),
    ]


def test_show_as_json(fasttune):
    _, out, _ = fasttune("templates", "show", "alpaca", "--json")
    shown = json.loads(out)
    template = load_plugins().template("alpaca")
    assert shown["identity"] == template.identity
    assert from_declaration(shown["declaration"]).identity == template.identity
    assert (shown["required"], shown["end"]) == (["instruction", "output"], "EOS")
    assert shown["tags"] == ["### Instruction:", "### Context:", "### Response:"]
    assert shown["segments"][-1] == {"name": "response", "text": "5", "train": True}


def test_show_writes_brackets_as_they_are(fasttune, tmp_path):
    """rich would take [INST] and [/INST] for its own markup."""
    (path, _) = scaffold("llama", "plugin", tmp_path, load_plugins()).files
    path.write_text(
        path.read_text().replace("### Question:", "[INST]").replace("### Answer:", "[/INST]")
    )
    _, out, _ = fasttune("templates", "show", "llama", "--plugins-dir", tmp_path)
    assert "[INST]↵" in out and "[/INST]↵" in out and "[INST]  ### Context:  [/INST]" in out
    path.write_text(path.read_text().replace("### Context:", "[bold]"))
    _, out, _ = fasttune("templates", "show", "llama", "--plugins-dir", tmp_path)
    assert "[bold]↵" in out


def test_an_unknown_template(fasttune):
    status, out, err = fasttune("templates", "show", "reasonning")
    assert (status, out) == (2, "")
    assert "error: no template is called 'reasonning'" in err
    assert "did you mean 'reasoning'?" in err


@pytest.mark.parametrize("before", [True, False])
def test_plugins_dir_before_or_after_the_command(fasttune, tmp_path, before):
    scaffold("mine", "plugin", tmp_path, load_plugins())
    option, command = ["--plugins-dir", tmp_path], ["templates", "list", "--json"]
    _, out, _ = fasttune(*(option + command if before else command + option))
    (mine,) = [template for template in json.loads(out) if template["name"] == "mine"]
    assert mine["path"] == str(tmp_path / "mine.py") and mine["distribution"] == ""


def test_new(fasttune, tmp_path):
    status, out, _ = fasttune("templates", "new", "mine", "-o", tmp_path / "here")
    assert status == 0 and f"wrote {tmp_path / 'here/mine.py'}\n" in out
    status, _, err = fasttune("templates", "new", "mine", "-o", tmp_path / "here")
    assert status == 2 and "--force" in err
    assert fasttune("templates", "new", "mine", "-o", tmp_path / "here", "--force")[0] == 0


def test_new_writes_to_plugins_and_its_hints_work(fasttune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = fasttune("templates", "new", "mine")
    assert (tmp_path / "plugins/mine.py").is_file()
    assert (tmp_path / "plugins/test_mine.py").is_file()
    hints = dict(line.split(":", 1) for line in out.splitlines() if not line.startswith("wrote"))
    use = "fasttune run --plugin plugins/mine.py --template mine --data rows.jsonl"
    assert hints["use it"].strip() == use
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    ended = fasttune("preview", *hints["use it"].split()[2:])
    assert ended[0] == 0 and ended[1].startswith("template mine, row 1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert fasttune(*hints["always"].split()[1:])[0] == 0
    monkeypatch.chdir(tmp_path.parent)
    assert "### Question:" in fasttune("templates", "show", "mine")[1]


@pytest.mark.parametrize("before", [True, False])
def test_plugin_may_be_given_more_than_once_and_anywhere(fasttune, tmp_path, before):
    paths = [
        scaffold(name, "plugin", tmp_path, load_plugins()).files[0]
        for name in ("one", "two", "three")
    ]
    options = ["--plugin", paths[0], f"--plugin={paths[1]}"]
    command = ["templates", "list", "--json"]
    _, out, err = fasttune(*(options + command if before else command + options))
    assert {"one", "two"} <= {template["name"] for template in json.loads(out)} and not err
    assert "three" not in out
    status, _, err = fasttune("plugins", "--plugin", tmp_path / "four.py")
    assert status == 2 and f"where: --plugin {tmp_path / 'four.py'}" in err


def test_check_by_name(fasttune, phi2_folder):
    status, out, err = fasttune("templates", "check", "reasoning", "--model", phi2_folder)
    assert (status, err) == (0, "")
    assert out.startswith(f"reasoning, with the tokenizer of {phi2_folder}\n")
    assert "failure" not in out and "warning" not in out


def test_check_as_json(fasttune, phi2_folder):
    status, out, _ = fasttune("templates", "check", "alpaca", "--model", phi2_folder, "--json")
    (checked,) = json.loads(out)
    assert (status, checked["template"], checked["passed"]) == (0, "alpaca", True)
    assert checked["tokenizer"] == str(phi2_folder)
    assert checked["checks"][0]["check"] == "renders"


def test_check_of_a_file_that_fails(fasttune, tmp_path, phi2_folder):
    (path, _) = scaffold("mine", "plugin", tmp_path, load_plugins()).files
    path.write_text(
        path.read_text().replace("from fasttune import", "from fasttune import Segment,")
        + """
class Mine(Template):
    def segments(self, row):
        yield Segment("q", f"Q: {row['instruction']}", train=False)
        yield Segment("a", row.get("output", "") + ".", train=True)


@hookimpl
def register_templates():
    return [Mine(name="mine")]
"""
    )
    status, out, _ = fasttune("templates", "check", path, "--model", phi2_folder)
    assert status == 1
    assert "failure  parse" in out and "'5.' is not '5' (character 1)" in out
    status, out, _ = fasttune("templates", "check", path, "--model", phi2_folder, "--json")
    assert status == 1 and json.loads(out)[0]["passed"] is False


def test_check_with_data(fasttune, tmp_path, phi2_folder):
    data = tmp_path / "rows.jsonl"
    data.write_text(
        '{"instruction": "a", "output": "b"}\n{"instruction": "### Response:", "output": "b"}\n'
    )
    command = ("templates", "check", "alpaca", "--model", phi2_folder, "--data", data)
    status, out, _ = fasttune(*command)
    assert status == 0
    assert "warning  data" in out and "row 2, instruction" in out


def test_check_of_a_file_without_a_template(fasttune, tmp_path):
    (tmp_path / "empty.py").write_text("")
    status, _, err = fasttune("templates", "check", tmp_path / "empty.py")
    assert status == 2 and "provides no template" in err


def test_plugins(fasttune):
    status, out, err = fasttune("plugins")
    assert (status, err) == (0, "")
    assert "template reasoning" in out and "metric stops" in out and "not loaded" not in out


def test_plugins_with_problems(fasttune, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    status, out, err = fasttune("plugins", "--plugins-dir", tmp_path)
    assert (status, err) == (0, "")
    assert "ZeroDivisionError: division by zero (line 1: 1 / 0)" in out
    assert f"FASTTUNE_PLUGINS={','.join(load_plugins().providers)}\n" in out
    _, out, _ = fasttune("plugins", "--plugins-dir", tmp_path, "--json")
    assert json.loads(out)["problems"] == [
        {
            "name": "broken",
            "path": str(path),
            "error": "ZeroDivisionError: division by zero (line 1: 1 / 0)",
        }
    ]


def test_other_commands_warn_of_a_broken_plugin_and_go_on(fasttune, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    status, out, err = fasttune("templates", "list", "--plugins-dir", tmp_path)
    assert status == 0 and "alpaca" in out
    assert "plugin broken is not loaded: ZeroDivisionError" in err and "broken.py" in err
