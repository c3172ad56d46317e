"""Formats without Python: YAML files, found by name, and errors that name the line."""

from __future__ import annotations

import pytest

from fasttune import FasttuneError, Template, choose, given, learn
from fasttune.formats.files import formats_in, read_format
from fasttune.plugins.discovery import load_plugins
from fasttune.plugins.scaffold import scaffold
from tests.conftest import cli

STEPS = """\
name: steps
description: a question, steps and an answer
system:
  by: language
  texts: {en: "Be brief.", fr: "Sois bref."}
  default: en
columns: [topic]
conversations: true
end: "<|end|>"
parts:
  - given: system
    text: "{system}\\n"
    once: true
  - given: topic
    text: "({topic})"
    when: topic
    min_length: 2
  - given: instruction
    text: |
      Q: {instruction}
      {{x}}
  - learn: steps
    text: "{reasoning}\\n"
  - learn: response
    text: "A: {output}"
"""
AS_PYTHON = Template(
    name="other",
    system=choose("language", {"en": "Be brief.", "fr": "Sois bref."}, default="en"),
    columns=["topic"],
    conversations=True,
    end="<|end|>",
    parts=[
        given("system", "{system}\n", once=True),
        given("topic", "({topic})", when="topic", min_length=2),
        given("instruction", "Q: {instruction}\n{{x}}\n"),
        learn("steps", "{reasoning}\n"),
        learn("response", "A: {output}"),
    ],
)


def write(file, text=STEPS):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_it_is_the_format_that_python_declares(tmp_path):
    template = read_format(write(tmp_path / "any.yaml"))
    assert (template.name, template.description) == ("steps", "a question, steps and an answer")
    assert template.identity == AS_PYTHON.identity
    row = {"instruction": "a", "reasoning": "b", "output": "c", "topic": "sums", "language": "fr"}
    text = "Sois bref.\n(sums)Q: a\n{x}\nb\nA: c"
    assert template.render(row) == AS_PYTHON.render(row) == text


def test_it_is_called_as_its_file_unless_it_says_otherwise(tmp_path):
    file = write(tmp_path / "mine.yml", STEPS.partition("\n")[2])
    assert read_format(file).name == "mine"


BROKEN = {
    "a key that is none": ("when: topic", "whn: topic", 16, "no key 'whn'", "mean 'when'?"),
    "of the format": ("columns:", "colums:", 7, "no key 'colums'", "did you mean 'columns'?"),
    "of a choice": ("default: en", "defalt: en", 6, "no key 'defalt'", "did you mean 'default'?"),
    "a wrong type": ("min_length: 2", "min_length: two", 17, "Expected `int`, got `str`", ""),
    "no column": ("Q: {instruction}", "Q: {intruction}", 18, "no column 'intruction'", "instruct"),
    "no field": ("({topic})", "({})", 14, "'{}' is not a plain column name", "{{ for a brace"),
    "not separable": ("A: {output}", "{output}", 24, "'\\n' is between", "put a tag"),
    "no default": ("default: en", "default: de", 3, "default 'de' has no text", "add it to texts"),
    "a key that is there twice": ("once: true", "text: x", 13, "'text' is there twice", "YAML"),
    "no YAML": ("columns: [topic]", "columns: [topic", 8, "expected ',' or ']'", "valid YAML"),
    "a list": (STEPS, "- a\n- b\n", None, "Expected `object`, got `array`", ""),
    "nothing": (STEPS, "", None, "Expected `object`, got `null`", ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_error_names_the_line(tmp_path, kind):
    old, new, line, message, hint = BROKEN[kind]
    assert old in STEPS
    file = write(tmp_path / "mine.yaml", STEPS.replace(old, new))
    ended = cli("templates", "show", file)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err and hint in ended.err
    assert str(file) in ended.err and (line is None or f"line {line}" in ended.err)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * (2**20 + 1)])
def test_a_file_that_is_no_text_or_too_long(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(FasttuneError, match="cannot read the format"):
        read_format(tmp_path / "mine.yaml")
    with pytest.raises(FasttuneError, match="cannot read the format"):
        read_format(tmp_path / "none.yaml")


def test_formats_are_found_in_the_working_folder_and_beside_the_config(tmp_path, monkeypatch):
    here, config = tmp_path / "here", tmp_path / "config/run.yaml"
    one = write(here / "formats/one.yaml", STEPS.replace("name: steps", "name: one"))
    two = write(config.parent / "formats/two.yml", STEPS.replace("name: steps", "name: two"))
    write(here / "formats/notes.txt", "no format")
    write(here / "three.yaml")
    monkeypatch.chdir(here)
    plugins = load_plugins(config=config)
    assert {"one", "two"} <= {*plugins.templates} and "steps" not in plugins.templates
    assert plugins.problems == [] and plugins.look_up("one")[1].path.resolve() == one
    assert plugins.facts("two")["path"] == str(two)
    assert formats_in([here, here.parent / "here"]) == [here / "formats/one.yaml"]
    ended = cli("templates", "show", "steps")
    assert ended.status == 2 and "if it is in " in ended.err
    assert "add --template three.yaml" in ended.err


def test_a_broken_format_is_a_problem_and_stops_nothing(tmp_path, monkeypatch):
    file = write(tmp_path / "formats/mine.yaml", STEPS.replace("when: topic", "whn: topic"))
    monkeypatch.chdir(tmp_path)
    ended = cli("templates", "list")
    assert ended.status == 0 and "reasoning" in ended.out and "steps" not in ended.out
    assert "mine is not loaded" in ended.err
    assert "there is no key 'whn' here" in ended.err and f"{file}, line 16" in ended.err


def test_a_name_that_a_plugin_has_is_refused(tmp_path, monkeypatch):
    file = write(tmp_path / "formats/mine.yaml", STEPS.replace("name: steps", "name: alpaca"))
    monkeypatch.chdir(tmp_path)
    ended = cli("templates", "list")
    assert ended.status == 2 and "the template 'alpaca' is provided twice" in ended.err
    assert str(file) in ended.err and "alpaca.py" in ended.err


def test_a_new_format_is_the_new_templates(tmp_path, monkeypatch):
    from fasttune.plugins.discovery import load_plugin

    monkeypatch.chdir(tmp_path)
    ended = cli("templates", "new", "mine", "--yaml")
    assert ended.status == 0 and "wrote formats/mine.yaml" in ended.out
    assert "fasttune run --template mine --data" in ended.out
    plugin, _ = scaffold("same", "plugin", tmp_path, load_plugins()).files
    template = load_plugins().template("mine")
    assert template.identity == load_plugin(plugin).template("same").identity
    assert cli("templates", "show", "formats/mine.yaml").status == 0
    with pytest.raises(FasttuneError, match="the file exists"):
        scaffold("mine", "yaml", tmp_path / "formats", load_plugins())
    assert cli("templates", "new", "x", "--yaml", "--package").status == 2
