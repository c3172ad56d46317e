"""A config to begin with, and the settings a run would have."""

from __future__ import annotations

import json
import shlex

import pytest

from fasttune.config import RunConfig, commented, load_config
from fasttune.data.suggest import propose_columns
from tests.conftest import cli, rows, tiny_model, write_rows
from tests.test_config import CONFIGS


def test_init_writes_every_setting_with_its_comment(tmp_path):
    ended = cli("init", tmp_path / "new")
    file = tmp_path / "new/fasttune.yaml"
    assert ended.status == 0 and ended.out == f"{file}\n"
    lines = file.read_text().splitlines()
    assert lines[0] == f"# fasttune run --config {file}"
    assert lines[1:] == (CONFIGS / "default.yaml").read_text().splitlines()[1:]
    assert load_config(file) == RunConfig()
    file.write_text("mine")
    ended = cli("init", tmp_path / "new")
    assert ended.status == 2 and "the file exists" in ended.err and file.read_text() == "mine"
    assert cli("init", tmp_path / "new", "--force", "-t", "alpaca", "-m", "a/b").status == 0
    assert load_config(file) == load_config(None, [("template", "alpaca"), ("model.name", "a/b")])
    assert "# the prompt format" in file.read_text()


def test_any_values_come_back_with_their_comments(tmp_path):
    changes = [
        ("system", "One: #two\n\"three\" 日本"),
        ("data.columns", {"input": "a b", "output": "c: d"}),
        ("train.report_to", ["wandb"]), ("train.learning_rate", 1e-5), ("model.dropout", "config"),
        ("train.packing", False), ("data.train", "C:\\rows.jsonl"), ("model.nf4_copy", "on"),
        ("lora.targets", ["q_proj", "k_proj"]), ("train.max_steps", 7),
    ]  # fmt: skip
    config = load_config(None, changes)
    file = tmp_path / "made.yaml"
    file.write_text(commented(config, "fasttune run"), encoding="utf-8")
    assert load_config(file) == config
    assert file.read_text().count("  #") == (CONFIGS / "default.yaml").read_text().count("  #")


def test_columns_of_other_names_are_proposed():
    assert propose_columns(["question", "answer"]) == {
        "instruction": "question", "output": "answer",
    }  # fmt: skip
    assert propose_columns(["instruction", "Output", "prompt"]) == {"output": "Output"}
    assert propose_columns(["Prompt", "completion", "context", "rationale", "id"]) == {
        "instruction": "Prompt", "input": "context", "reasoning": "rationale",
        "output": "completion",
    }  # fmt: skip
    assert propose_columns(["a", "b"]) == {}


def test_init_looks_at_the_rows(tmp_path, monkeypatch, phi2_tokenizer):
    monkeypatch.chdir(tmp_path)
    theirs = [
        {"question": r["instruction"], "rationale": r["reasoning"], "answer": r["output"]}
        for r in rows(40)
    ]
    write_rows(tmp_path / "rows.jsonl", theirs)
    model = tiny_model("llama", phi2_tokenizer)
    ended = cli("init", "-d", "rows.jsonl", "-m", model)
    assert ended.status == 0, ended.err
    made = load_config(tmp_path / "fasttune.yaml")
    assert made.data.train == str(tmp_path / "rows.jsonl") and made.template == "reasoning"
    assert made.data.columns == {
        "instruction": "question", "reasoning": "rationale", "output": "answer",
    }  # fmt: skip
    assert made.train.batch_size == 4 and "plan: " in ended.err
    assert "instruction is taken from question" in ended.err


def test_init_takes_a_batch_that_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(4))
    words = ("init", "-d", "rows.jsonl", "-m", "microsoft/phi-2", "--force", "--gpu")
    assert cli(*words, "t4").status == 0
    assert load_config(tmp_path / "fasttune.yaml").train.batch_size == 4
    ended = cli(*words, "4GB")
    made = load_config(tmp_path / "fasttune.yaml").train
    assert ended.status == 0 and made.batch_size < 4
    assert made.batch_size * made.gradient_accumulation == 4
    assert f"train.batch_size={made.batch_size} train.gradient" in ended.err
    assert " it fits" in ended.err
    assert cli("plan", "-c", tmp_path / "fasttune.yaml", "--gpu", "4GB").status == 0
    (tmp_path / "fasttune.yaml").unlink()
    assert cli(*words, "2GB").status == 2 and not (tmp_path / "fasttune.yaml").exists()


def test_the_commands_that_init_prints_work(tmp_path, monkeypatch, phi2_tokenizer):
    monkeypatch.chdir(tmp_path)
    bad = [{"instruction": "", "output": "2"}, *rows(40)]
    write_rows(tmp_path / "my rows.jsonl", bad)
    assert cli("templates", "new", "mine", "-o", "my plugins").status == 0
    model = tiny_model("llama", phi2_tokenizer)
    words = ("init", "my project", "-d", "my rows.jsonl", "-t", "mine", "-m", model)
    plugin = ("--plugin", "my plugins/mine.py")
    ended = cli(*words, *plugin)
    assert ended.status == 2 and "data.skip_bad_rows=true" in ended.err
    ended = cli(*words, *plugin, "data.skip_bad_rows=true")
    assert ended.status == 0 and "None" not in ended.err, ended.err
    printed = [line.partition(":  ")[2] for line in ended.err.splitlines() if ":  " in line]
    data, run = (shlex.split(line)[1:] for line in printed)
    ended = cli(*data)
    assert ended.status == 0 and "40 good, 1 bad" in ended.out, ended.err
    ended = cli(*run, "--dry-run")
    assert ended.status == 0 and "held out, 1 skipped" in ended.out, ended.err
    header = (tmp_path / "my project/fasttune.yaml").read_text().splitlines()[0]
    assert header.removeprefix("# fasttune ") == shlex.join(run)


def test_init_takes_settings_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("init", "train.epochs=3").status == 0
    assert load_config(tmp_path / "fasttune.yaml").train.epochs == 3
    ended = cli("init", "one", "two")
    assert ended.status == 2 and "where: one two" in ended.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--map", "instruction=question"], "give --data, too"),
        (["-d", "none.jsonl"], "no such file"),
        (["-d", "odd.jsonl"], "no column 'instruction'"),
    ],
)
def test_what_init_cannot_do_leaves_no_file(words, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "odd.jsonl", [{"a": "b"}])
    ended = cli("init", "new", *words)
    assert ended.status == 2 and why in ended.err and not (tmp_path / "new").exists()


def test_config_prints_what_a_run_would_have(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("lora: {r: 8}\ntemplate: alpaca\n")
    words = ("-c", file, "-d", "x.jsonl", "--map", "instruction=q", "train.epochs=2")
    expected = load_config(
        file,
        [("data.train", "x.jsonl"), ("data.columns", {"instruction": "q"}), ("train.epochs", 2)],
    )
    again = tmp_path / "again.yaml"
    again.write_text(cli("config", *words).out)
    assert load_config(again) == expected
    assert json.loads(cli("config", *words, "--json").out) == expected.as_dict()
    ended = cli("config", "lora.rr=8")
    assert ended.status == 2 and "did you mean 'r'" in ended.err
