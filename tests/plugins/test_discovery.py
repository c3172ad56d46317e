"""Plugins: found in order, loaded one by one, named with their provider."""

from __future__ import annotations

import doctest
import pickle
import re
import sys
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

import pluggy
import pytest

from fasttune import FasttuneError, Metric, Template
from fasttune.plugins import hookspecs
from fasttune.plugins.discovery import GROUP, load_plugin, load_plugins

DOCS = Path(__file__).parents[2] / "docs" / "templates.md"
BUILT_IN = sorted(p.name for p in distribution("fasttune").entry_points.select(group=GROUP))

GOOD = """
from fasttune import Template, given, hookimpl, learn

class Mine(Template):
    name = "NAME"

    def segments(self, row):
        yield given("instruction", f"Q: {row['instruction']}\\nA:")
        yield learn("response", row.get("output", ""))

@hookimpl
def register_templates():
    return [Mine()]
"""


def plugin(folder: Path, stem: str, template: str | None = None, text: str = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.py"
    path.write_text(text.replace("NAME", template or stem))
    return path


def loaded(*arguments: Any):
    plugins = load_plugins(*arguments)
    plugins.provided()  # collecting may add problems
    return plugins


def reports(*arguments: object) -> str:
    with pytest.raises(FasttuneError) as caught:
        loaded(*arguments)
    return str(caught.value)


def installed(monkeypatch, *points: tuple[str, str]) -> None:
    """Have only these entry points, given as (name, value)."""
    found = [EntryPoint(name, value, GROUP) for name, value in points]
    monkeypatch.setattr("fasttune.plugins.discovery.entry_points", lambda group: found)


def test_built_ins_enter_by_the_public_door():
    plugins = loaded()
    assert list(plugins.providers) == BUILT_IN
    assert {"alpaca", "answers", "multilingual", "reasoning"} <= set(BUILT_IN)
    assert {p.distribution for p in plugins.providers.values()} == {"fasttune"}
    assert plugins.problems == []
    metrics = "stops", "format", "exact", "numeric", "agreement", "exact_samples", "length"
    assert plugins.provided()["answers"] == [f"metric {name}" for name in metrics]


def test_folders_are_searched_in_order(tmp_path, monkeypatch):
    option, variable, beside, user = (tmp_path / name for name in ("o", "v", "c/plugins", "u"))
    plugin(user / "plugins", "a_user")
    plugin(beside, "b_beside")
    plugin(variable, "c_variable")
    plugin(option, "e_option")
    plugin(option, "d_option")
    monkeypatch.setenv("FASTTUNE_PLUGINS_DIR", str(variable))
    monkeypatch.setattr("fasttune.plugins.discovery.user_config_dir", lambda: user)
    plugins = loaded(option, tmp_path / "c/run.yaml", (), True)
    names = [*BUILT_IN, "d_option", "e_option", "c_variable", "b_beside", "a_user"]
    assert list(plugins.providers) == names
    assert str(plugins.providers["b_beside"]) == f"b_beside (folder, {beside / 'b_beside.py'})"


def test_helpers_and_tests_are_no_plugins(tmp_path):
    for stem in ("_helper", "__init__", "test_mine", "conftest"):
        plugin(tmp_path, stem, text="raise RuntimeError")
    assert list(loaded(tmp_path).providers) == BUILT_IN
    assert loaded(tmp_path).problems == []


def test_a_folder_that_does_not_exist(tmp_path, monkeypatch):
    assert f"--plugins-dir: {tmp_path / 'no'}" in reports(tmp_path / "no")
    monkeypatch.setenv("FASTTUNE_PLUGINS_DIR", str(tmp_path / "nor"))
    assert f"FASTTUNE_PLUGINS_DIR: {tmp_path / 'nor'}" in reports()


BROKEN = {
    "raises": ("\nraise RuntimeError('on purpose')", "RuntimeError: on purpose (line 2)"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3 (line 2)"),
    "syntax": ("def f(:", "SyntaxError: invalid syntax"),
    "imports": ("import no_such_module", "No module named 'no_such_module' (line 1)"),
    "hook_raises": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    return 1 / 0",
        "ZeroDivisionError: division by zero (line 4)",
    ),
    "hook_exits": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_metrics():\n    raise SystemExit",
        "SystemExit",
    ),
    "wrong_type": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    return ['mine']",
        "register_templates gave 'mine', which is no Template",
    ),
    "gives_nothing": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    pass",
        "register_templates gave nothing; return a list",
    ),
    "no_name": (GOOD.replace('name = "NAME"', "pass"), "no attribute 'name'"),
    "misspelt": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_template():\n    return []",
        "unknown hook 'register_template'",
    ),
    "arguments": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates(rows):\n    return []",
        "{'rows'}",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_does_not_stop_the_others(tmp_path, kind):
    text, error = BROKEN[kind]
    path = plugin(tmp_path, "broken", text=text)
    plugin(tmp_path, "other")
    plugins = loaded(tmp_path)
    assert [(p.name, p.path) for p in plugins.problems] == [("broken", str(path))]
    assert error in plugins.problems[0].error
    assert plugins.template("other").name == "other"
    assert plugins.manager.check_pending() is None


def test_a_broken_installed_plugin_is_named_with_its_file(tmp_path, monkeypatch):
    path = plugin(tmp_path, "broken_wheel_module", text="raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(
        monkeypatch,
        ("alpaca", "fasttune_plugins.alpaca"),
        ("broken", "broken_wheel_module"),
        ("gone", "no_such_package.module"),
        ("thing", "fasttune_plugins.alpaca:Alpaca"),
    )
    plugins = loaded(tmp_path)
    assert [(p.name, p.path) for p in plugins.problems] == [
        ("broken", str(path)),
        ("gone", "no_such_package.module"),
        ("thing", sys.modules["fasttune_plugins.alpaca"].__file__),
    ]
    assert "must name a module" in plugins.problems[2].error
    assert list(plugins.templates) == ["alpaca"]


def test_a_generator_is_as_good_as_a_list(tmp_path):
    plugin(tmp_path, "lazy", text=GOOD.replace("return [Mine()]", "yield Mine()"))
    assert loaded(tmp_path).template("lazy").name == "lazy"


def test_two_templates_of_one_name_name_both_providers(tmp_path):
    first, second = plugin(tmp_path, "one", "same"), plugin(tmp_path, "two", "same")
    message = reports(tmp_path)
    assert "template 'same' is provided twice" in message
    assert f"one (folder, {first})" in message and f"two (folder, {second})" in message


def test_two_plugins_of_one_name_name_both_files(tmp_path, monkeypatch):
    first, second = plugin(tmp_path / "a", "same"), plugin(tmp_path / "b", "same")
    monkeypatch.setenv("FASTTUNE_PLUGINS_DIR", str(tmp_path / "b"))
    message = reports(tmp_path / "a")
    assert "two plugins are called 'same'" in message
    assert str(first) in message and str(second) in message


def test_two_installed_plugins_of_one_name(monkeypatch):
    installed(
        monkeypatch, ("same", "fasttune_plugins.alpaca"), ("same", "fasttune_plugins.reasoning")
    )
    message = reports()
    assert "two plugins are called 'same'" in message
    assert "alpaca.py" in message and "reasoning.py" in message


def test_did_you_mean(tmp_path):
    path = plugin(tmp_path, "broken", text="1 / 0")
    with pytest.raises(FasttuneError) as caught:
        loaded(tmp_path).template("reasonning")
    assert str(caught.value) == (
        "no template is called 'reasonning'\n"
        f"not loaded: broken ({path}): ZeroDivisionError: division by zero (line 1)\n"
        "did you mean 'reasoning'? choose from: alpaca, chatml, multilingual, reasoning"
    )


def test_fasttune_plugins_restricts(tmp_path, monkeypatch):
    plugin(tmp_path, "mine")
    plugin(tmp_path, "broken", text="1 / 0")
    monkeypatch.setenv("FASTTUNE_PLUGINS", "mine, alpaca")
    plugins = loaded(tmp_path)
    assert list(plugins.providers) == ["alpaca", "mine"] and plugins.problems == []


def test_fasttune_plugins_with_an_unknown_name(tmp_path, monkeypatch):
    plugin(tmp_path, "mine")
    plugin(tmp_path, "_helper")
    monkeypatch.setenv("FASTTUNE_PLUGINS", "mine,alpca")
    message = reports(tmp_path)
    assert "no plugin is called 'alpca'\nenvironment variable FASTTUNE_PLUGINS" in message
    assert "did you mean 'alpaca'?" in message and "_helper" not in message


def test_a_folder_plugin_is_a_module_and_can_be_pickled(tmp_path):
    plugin(tmp_path / "a", "mine")
    template = loaded(tmp_path / "a").template("mine")
    module = sys.modules[type(template).__module__]
    assert module.__file__ == str(tmp_path / "a/mine.py")
    again = pickle.loads(pickle.dumps(template))
    assert again.render({"instruction": "x", "output": "y"}) == "Q: x\nA:y"


def test_files_of_one_name_are_modules_of_their_own(tmp_path):
    first = load_plugin(plugin(tmp_path / "a", "mine")).template("mine")
    second = load_plugin(plugin(tmp_path / "b", "mine")).template("mine")
    assert type(first) is not type(second)
    assert type(pickle.loads(pickle.dumps(first))) is type(first)


def test_a_plugin_that_fails_leaves_no_module_behind(tmp_path):
    plugin(tmp_path, "half_loaded", text="raise SystemExit")
    loaded(tmp_path)
    assert not [name for name in sys.modules if "half_loaded" in name]


def test_a_file_that_an_entry_point_has_loaded_is_skipped():
    plugins = loaded(Path(sys.modules["fasttune_plugins"].__file__).parent)
    assert list(plugins.providers) == BUILT_IN and plugins.problems == []


def test_load_plugin_loads_that_file_and_nothing_else(tmp_path):
    plugins = load_plugin(plugin(tmp_path, "mine"))
    assert list(plugins.templates) == ["mine"] and list(plugins.metrics) == []


@pytest.mark.parametrize("kind", BROKEN)
def test_load_plugin_says_why_it_does_not_load(tmp_path, kind):
    text, error = BROKEN[kind]
    path = plugin(tmp_path, "broken", text=text)
    with pytest.raises(FasttuneError) as caught:
        load_plugin(path)
    assert caught.value.where == str(path) and error in caught.value.hint


def test_load_plugin_without_a_file(tmp_path):
    with pytest.raises(FasttuneError, match="no such plugin file"):
        load_plugin(tmp_path / "no.py")
    (tmp_path / "notes.txt").write_text("no plugin")
    with pytest.raises(FasttuneError, match="does not load"):
        load_plugin(tmp_path / "notes.txt")


def test_identity_of_a_built_in():
    identity = loaded().identity("reasoning")
    assert (identity.provider, identity.distribution) == ("reasoning", "fasttune")
    assert re.fullmatch(r"[0-9a-f]{64}", identity.source)
    assert identity.as_dict()["rendering"] == identity.rendering


def test_identity_follows_the_rendering_and_the_source(tmp_path):
    def identity(text):
        return load_plugin(plugin(tmp_path, "mine", text=text)).identity("mine")

    first = identity(GOOD)
    spaced = identity(GOOD.replace("\n@hookimpl", "\n\n\n@hookimpl"))
    reworded = identity(GOOD.replace("Q: ", "Question: "))
    assert identity(GOOD) == first
    assert spaced.rendering == first.rendering and spaced.source != first.source
    assert reworded.rendering != first.rendering


def test_identity_of_a_template_that_fails(tmp_path):
    path = plugin(tmp_path, "mine", text=GOOD.replace("'instruction'", "'question'"))
    with pytest.raises(FasttuneError) as caught:
        load_plugin(path).identity("mine")
    assert "fails on a probe row: KeyError: 'question'" in caught.value.message
    assert str(path) in caught.value.where


def example(hook: str, tmp_path: Path):
    """The plugins with one that consists of the hook's docstring example."""
    examples = doctest.DocTestParser().get_examples(getattr(hookspecs, hook).__doc__)
    path = tmp_path / "example.py"
    path.write_text("".join(e.source for e in examples))
    return loaded(tmp_path)


def test_hook_register_templates(tmp_path):
    plugins = example("register_templates", tmp_path)
    assert plugins.template("plain").parse(" 5") == {"response": "5"}
    assert plugins.provided()["example"] == ["template plain"]


def test_hook_register_metrics(tmp_path):
    from fasttune import Answer
    from fasttune.plugins.metric import score

    plugins = example("register_metrics", tmp_path)
    answers = [
        Answer({}, t, {"response": t}, "eos", 3) for t in ("two words", "and now four words")
    ]
    assert score(answers, [plugins.metrics["words"][0]]) == {"words": 3}
    assert plugins.provided()["example"] == ["metric words"]


def test_hook_register_exporters(tmp_path):
    from types import SimpleNamespace

    plugins = example("register_exporters", tmp_path)
    read = dict.fromkeys(("prompt_ids", "logits", "greedy", "eos_ids"), print)
    job = SimpleNamespace(
        folder=tmp_path, open_merged=lambda folder: SimpleNamespace(opened=folder, **read)
    )
    assert plugins.exporters["half"][0].open(job).opened == tmp_path
    assert plugins.provided()["example"] == ["exporter half"]


def test_hook_training_callbacks(tmp_path):
    from types import SimpleNamespace

    plugins = example("training_callbacks", tmp_path)
    (note,) = plugins.training_callbacks(tmp_path)
    note.on_train_end(None, SimpleNamespace(global_step=7), None)
    assert (tmp_path / "note.txt").read_text() == "7 steps"
    assert plugins.provided()["example"] == ["training callbacks"]


def test_training_callbacks_that_fail_name_the_plugin(tmp_path):
    text = "from fasttune import hookimpl\n@hookimpl\ndef training_callbacks():\n    return 1 / 0"
    path = plugin(tmp_path, "broken", text=text)
    with pytest.raises(FasttuneError) as caught:
        loaded(tmp_path).training_callbacks(tmp_path)
    assert "plugin 'broken' fails in training_callbacks: ZeroDivisionError" in caught.value.message
    assert str(path) in caught.value.where


def test_every_hook_has_a_test_a_docs_section_and_an_example():
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    hooks = [name for name, caller in vars(manager.hook).items() if not name.startswith("_")]
    sections = re.findall(r"^### (\w+)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert hooks, "pluggy lists none"
    for hook in hooks:
        assert f"test_hook_{hook}" in globals(), f"write test_hook_{hook}"
        assert hook in sections, f"write a section '### {hook}' in {DOCS}"
        assert "Example:\n" in getattr(hookspecs, hook).__doc__


@pytest.mark.parametrize("number", range(6))
def test_the_code_in_the_docs_is_a_plugin(tmp_path, number):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "block.py").write_text(blocks[number])
    plugins = load_plugin(tmp_path / "block.py")
    assert plugins.provided()["block"]
    assert all(isinstance(template, Template) for template, _ in plugins.templates.values())
    assert all(isinstance(metric, Metric) for metric, _ in plugins.metrics.values())
