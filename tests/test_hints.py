"""What errors tell a reader to do is there: settings, options, commands and packages.

The texts are read from the source: the hint of every error, and every other text of the modules
that names a setting, an option of fasttune or a pip line.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

from fasttune.cli.app import all_commands
from fasttune.config import SETTINGS, TrainConfig
from tests.conftest import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITH_SETTINGS = {"data", "preview", "plan", "run", "config", "init", "compare", "bench"}
READING = {"answer", "evaluate"}  # settings for reading rows
ANY = "X"
"""What stands in for a value of an f-string."""

# Where hints are printed: the path's start -> the commands that can print them. The longest counts.
PRINTED = {
    "src/fasttune": WITH_SETTINGS,
    "src/fasttune/answering": {"generate", "answer"},
    "src/fasttune/benchmark": {"bench"},
    "src/fasttune/cli": {"run"},
    "src/fasttune/cli/bench": {"bench"},
    "src/fasttune/cli/compare": {"compare", "evaluate"},
    "src/fasttune/cli/data": {"data", "preview"},
    "src/fasttune/cli/export": {"export", "serve"},
    "src/fasttune/cli/init": {"init"},
    "src/fasttune/cli/runs": {"run", "runs rm"},
    "src/fasttune/cli/templates": {"templates new", "templates check"},
    "src/fasttune/comparison": {"compare", "evaluate"},
    "src/fasttune/data": WITH_SETTINGS - {"config"} | READING,
    "src/fasttune/exports": {"export", "serve"},
    "src/fasttune/models": {"run", "bench", "compare"},
    "src/fasttune/planning": {"plan", "run"},
    "src/fasttune/plugins/exporter": {"export"},
    "src/fasttune/plugins/scaffold": {"templates new"},
    "src/fasttune/runs": {"run"},
    "src/fasttune/serving": {"serve"},
    "src/fasttune/source": {"generate", "answer", "chat", "evaluate"},
    "src/fasttune/training": {"run", "compare"},
    "plugins": {"export"},
}
ELSEWHERE = {"--no-deps", "--multi_gpu"}
"""Options of other programs."""
COMMAND = r"(?:^|`|: |, or )fasttune ((?:runs |templates |plugins )?[a-z]+)\b"
"""A command in a text, in which fasttune also does things."""


class Hint(NamedTuple):
    place: str
    text: str

    @property
    def commands(self) -> set[str]:
        starts = [start for start in PRINTED if self.place.startswith(start)]
        return PRINTED[max(starts, key=len)]


def texts(node: ast.AST) -> Iterator[str]:
    """The texts of an expression; what an f-string computes is ANY."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(p.value if isinstance(p, ast.Constant) else ANY for p in parts)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from texts(child)


def hints() -> Iterator[Hint]:
    for file in sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("plugins/**/*.py")]):
        place = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            written: list[ast.AST] = []
            if isinstance(node, ast.Call):
                named = [word.value for word in node.keywords if word.arg == "hint"]
                if getattr(node.func, "id", "") == "FasttuneError":
                    named += node.args[2:]
                written += named
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "hint":
                written.append(node.value)
            for text in (text for each in written for text in texts(each)):
                yield Hint(f"{place}:{node.lineno}", text)


HINTS = [*hints()]


def command_of(words: str) -> Any:
    """The command that words name, as "runs rm"; None if there is none."""
    command = all_commands()
    for word in words.split():
        command = getattr(command, "commands", {}).get(word)
    return command


def accepts(command: str, option: str) -> bool:
    names = [o for p in command_of(command).params for o in p.opts]
    return option in [*names, "--help", *(o for p in all_commands().params for o in p.opts)]


def test_hints_are_found():
    assert len(HINTS) > 200
    assert all(command_of(name) for names in PRINTED.values() for name in names)


def test_settings_that_a_hint_names_exist_and_its_commands_take_them():
    for hint in HINTS:
        keys = re.findall(r"\b((?:model|lora|data|train|samples)\.[a-z_]+)\b", hint.text)
        for key in keys:
            assert key in SETTINGS, hint
        if re.search(r"\b[a-z]+\.[a-z_]+=", hint.text) and not hint.text.startswith("train "):
            assert hint.commands <= WITH_SETTINGS | READING, hint


def test_values_that_a_hint_names_are_taken():
    from fasttune.config import load_config

    for hint in HINTS:
        for setting in re.findall(r"\b[a-z]+\.[a-z_]+=[\w.-]+\b", hint.text):
            if not setting.partition("=")[2].isupper():  # as N is
                load_config(None, [setting])


def test_options_that_a_hint_names_are_taken():
    for hint in HINTS:
        if re.search(COMMAND + ".*add --", hint.text):  # to that command
            continue
        text = re.sub(r"`?(pip|python|torchrun)\b[^`;]*", "", hint.text)
        for full in re.findall(COMMAND + "([^`;]*)", text):
            for option in re.findall(r"(?<![\w-])--[a-z-]+", full[1]):
                assert accepts(full[0], option), (hint, full[0])
        text = re.sub(COMMAND + "[^`;]*", "", text)
        for option in re.findall(r"(?<![\w-])--?[a-z_][a-z_-]*\b", text):
            if option in ELSEWHERE or hint.text.startswith("leave out"):
                continue
            takers = [name for name in hint.commands if accepts(name, option)]
            assert takers, (hint, option)


def test_commands_that_a_hint_names_exist():
    for hint in HINTS:
        for words in re.findall(COMMAND, hint.text):
            assert command_of(words), hint


def test_packages_that_a_text_says_to_install_bring_no_other_torch():
    """pip resolves `fasttune[extra]` anew, torch included: name the extra's packages instead."""
    extras = PROJECT["optional-dependencies"].values()
    known = {Requirement(line).name for extra in extras for line in extra}
    known |= {Requirement(line).name for line in PROJECT["dependencies"]} | {"unsloth_zoo"}
    lines = 0
    for folder in ("src", "plugins", "docs"):
        for file in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]:
            for line in re.findall(r"pip install ([^`\n;#]+)", file.read_text(encoding="utf-8")):
                assert "fasttune[" not in line, (file, line)
                words = re.findall(r"(?<![\w.-])'?([a-z][\w-]*)(?:\[\w+\])?", line)
                lines += bool({*words} & known)
    assert lines >= 8


@pytest.mark.parametrize("key", SETTINGS)
def test_a_key_without_its_group_leads_to_it(key):
    leaf = key.rpartition(".")[2]
    if leaf in SETTINGS or leaf in ("train", "data", "model", "samples", "lora"):
        return
    ended = cli("config", f"{leaf}=1")
    assert ended.status == 2 and f"'{key}'" in ended.err.partition("what to do: ")[2]
    ended = cli("run", f"--{leaf.replace('_', '-')}", "1e-4")
    took = any(f"--{leaf.replace('_', '-')}" in p.opts for p in command_of("run").params)
    assert took or f"{key}=1e-4" in ended.err.partition("what to do: ")[2], ended.err


def test_every_field_of_training_is_a_setting():
    assert {f"train.{name}" for name in TrainConfig.__dataclass_fields__} <= {*SETTINGS}
