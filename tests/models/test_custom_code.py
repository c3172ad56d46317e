"""Python code that comes with a model is never run, nor asked about."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from fasttune import hub
from fasttune.errors import FasttuneError
from fasttune.models.tokenizer import cannot_load, load_tokenizer, require_no_code
from tests.conftest import build_phi2_tokenizer, cli, rows, write_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CODE = """\
from pathlib import Path

Path({marker!r}).write_text("run")

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


class Config(PretrainedConfig):
    model_type = "stranger"


class Model(PreTrainedModel):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
WANTED = {
    "model": {
        "model_type": "stranger",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    },
    "tokenizer": {
        "tokenizer_class": "Tokenizer",
        "auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]},
    },
    "tokenizer, in a list": {"tokenizer_class": "Tokenizer", "auto_map": [None, "code.Tokenizer"]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A Phi's folder with a tokenizer and code that leaves a mark; stdin says yes to all."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "phi", "vocab_size": 51200}))
    build_phi2_tokenizer().save_pretrained(folder)
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "MARK")))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(20))
    return folder


def ask_for_code(folder: Path, kind: str) -> Path:
    file = folder / ("config.json" if kind == "model" else "tokenizer_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **WANTED[kind]}))
    return file


@pytest.fixture
def run(folder):
    """A finished run of the model in the folder."""
    made = folder.parent / "runs" / "old"
    shutil.copytree(ROOT / "tests" / "old_run", made)
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "model": str(folder)}))
    return made


@pytest.mark.parametrize("kind", WANTED)
@pytest.mark.parametrize(
    "command",
    [
        "data rows.jsonl --model stranger",
        "preview -t alpaca --data rows.jsonl --model stranger",
        "run -d rows.jsonl -m stranger",
        "run -d rows.jsonl -m stranger --dry-run",
        "generate stranger Hello",
        "generate last Hello",
        "chat stranger",
        "plan -m stranger --gpu t4",
        "plan -d rows.jsonl -m stranger --gpu t4",
        "templates check alpaca --model stranger",
        "compare --templates alpaca,reasoning -d rows.jsonl -m stranger",
        "bench -d rows.jsonl -m stranger",
        "export last --to merged",
        "export last --to adapter --no-verify",
    ],
)
def test_a_model_that_wants_its_code_run_is_refused(folder, run, command, kind):
    file = ask_for_code(folder, kind)
    ended = cli(*command.split())
    assert ended.status == 2 and "needs its own code" in ended.err
    assert f"where: {file.relative_to(folder.parent)}" in ended.err.replace(f"{folder.parent}/", "")
    assert not (folder.parent / "MARK").exists()
    assert not (run / "exports").exists()


def test_nor_is_code_beside_an_adapter(folder, run):
    build_phi2_tokenizer().save_pretrained(run / "adapter")
    shutil.copy(folder / "code.py", run / "adapter")
    ask_for_code(run / "adapter", "tokenizer")
    assert cli("export", "last", "--to", "adapter", "--no-verify").status == 2
    assert not (folder.parent / "MARK").exists()


def test_an_architecture_of_transformers_own_is_taken_without_the_code(folder):
    file = folder / "config.json"
    code = {**WANTED["model"]["auto_map"], "AutoTokenizer": [None, "code.Tokenizer"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": code}))
    require_no_code(str(folder))
    assert load_tokenizer(str(folder)).eos_token == "<|endoftext|>"
    assert not (folder.parent / "MARK").exists()


def test_what_transformers_says_of_code_is_put_into_words(folder):
    from transformers import AutoConfig

    ask_for_code(folder, "model")
    with pytest.raises(ValueError, match="custom code") as caught:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert "never run" in cannot_load(str(folder), caught.value).hint


def test_of_a_model_on_the_hub_the_same_files_are_asked_for(monkeypatch, folder):
    ask_for_code(folder, "tokenizer")
    monkeypatch.setattr(hub, "file", lambda model, name: folder / name)
    with pytest.raises(FasttuneError, match="needs its own code"):
        require_no_code("owner/model")


LOADER = re.compile(r"(Auto\w+|FastLanguageModel)\.from_\w+|pipeline")


def test_every_loader_is_told_not_to_run_code():
    calls = [
        (file, call)
        for file in [*ROOT.glob("src/**/*.py"), *ROOT.glob("plugins/**/*.py")]
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and LOADER.fullmatch(ast.unparse(call.func))
    ]
    assert len(calls) >= 12
    for file, call in calls:
        told = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert told.get("trust_remote_code") == "False", f"{file}:{call.lineno}"
