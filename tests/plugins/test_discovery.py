"""Plugins: found in order, loaded one by one, named with their provider."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from fasttune import Answer, FasttuneError, Metric, Row, Template
from fasttune.plugins import hookspecs
from fasttune.plugins.discovery import (
    GROUP,
    add_plugin,
    added_plugins,
    load_plugin,
    load_plugins,
)
from fasttune.plugins.metric import score
from tests.conftest import cli

DOCS = Path(__file__).parents[2] / "docs"
BUILT_IN = sorted(p.name for p in distribution("fasttune").entry_points.select(group=GROUP))

GOOD = """
from fasttune import Template, given, hookimpl, learn

TEMPLATE = Template(
    name="NAME",
    parts=[given("ask", "Q: {instruction}\\nA:"), learn("response", "{output}")],
)

@hookimpl
def register_templates():
    return [TEMPLATE]
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
    option, variable, user = (tmp_path / name for name in ("o", "v", "u"))
    plugin(user / "plugins", "a_user")
    plugin(variable, "c_variable")
    plugin(option, "e_option")
    plugin(option, "d_option")
    named, added = plugin(tmp_path / "n", "z_named"), plugin(tmp_path / "n", "y_added")
    monkeypatch.setenv("FASTTUNE_PLUGINS_DIR", str(variable))
    monkeypatch.setattr("fasttune.plugins.discovery.user_config_dir", lambda: user)
    add_plugin(added)
    plugins = loaded(option, None, [named])
    own = ["z_named", "y_added", "d_option", "e_option", "c_variable", "a_user"]
    assert list(plugins.providers) == [*BUILT_IN, *own]
    assert str(plugins.providers["d_option"]) == f"d_option (file, {option / 'd_option.py'})"


def test_what_lies_beside_a_config_or_in_the_working_folder_does_not_run(tmp_path, monkeypatch):
    """It may be a stranger's."""
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\n{GOOD}"
    config, here = tmp_path / "c/run.yaml", tmp_path / "here"
    for folder in (config.parent, here):
        for place in (folder, folder / "plugins"):
            plugin(place, "mine", text=text)
    monkeypatch.chdir(here)
    plugins = loaded(None, config)
    assert list(plugins.providers) == BUILT_IN and plugins.problems == []
    with pytest.raises(FasttuneError) as caught:
        plugins.template("mine")
    assert not (tmp_path / "ran").exists()
    assert "if it is in mine.py, add --plugin mine.py; " in caught.value.hint
    for folder in ("", "plugins/"):
        assert f"{folder}mine.py" in caught.value.where
        assert str(config.parent / f"{folder}mine.py") in caught.value.where
    assert "mine" in loaded(None, config, [here / "mine.py"]).templates
    assert (tmp_path / "ran").exists()


def test_plugins_are_added_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = plugin(tmp_path, "mine")
    monkeypatch.chdir(tmp_path)
    assert cli("plugins", "add", "mine.py").out.startswith(f"added {path}: every command")
    assert cli("plugins", "add", "mine.py").status == 0
    assert added_plugins() == [path] and "mine" in loaded().templates
    monkeypatch.chdir(path.parents[1])
    assert "mine" in [t["name"] for t in json.loads(cli("templates", "list", "--json").out)]
    path.write_text("1 / 0")
    assert "plugin mine is not loaded: ZeroDivisionError" in cli("templates", "list").err
    assert cli("plugins", "remove", path).out == f"removed {path}\n" and path.is_file()
    assert added_plugins() == [] and "mine" not in loaded().providers
    ended = cli("plugins", "remove", path)
    assert ended.status == 2 and "was not added" in ended.err and "added are: none" in ended.err
    for wrong, message in ((path, "does not load"), (tmp_path / "no.py", "no such plugin file")):
        ended = cli("plugins", "add", wrong)
        assert ended.status == 2 and message in ended.err and added_plugins() == []


def test_an_added_plugin_that_is_gone_is_named_and_can_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = plugin(tmp_path, "mine")
    add_plugin(path)
    path.unlink()
    ended = cli("templates", "list")
    assert ended.status == 0 and str(path) in ended.err and "alpaca" in ended.out
    assert cli("plugins", "remove", path).status == 0
    assert cli("templates", "list").err == ""


@pytest.mark.parametrize("damage", ["", "{", "5", "[" * 9999])
def test_a_damaged_list_of_added_plugins(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fasttune").mkdir()
    (tmp_path / "fasttune/plugins.json").write_text(damage)
    ended = cli("templates", "list")
    assert ended.status == 2 and "the list of added plugins is damaged" in ended.err


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
    "raises": ("\nraise RuntimeError('on purpose')", "RuntimeError: on purpose (line 2: raise"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3 (line 2: sys.exit(3))"),
    "syntax": ("def f(:", "SyntaxError: invalid syntax"),
    "imports": ("import no_such_module", "No module named 'no_such_module' (line 1: import"),
    "hook_raises": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    return 1 / 0",
        "ZeroDivisionError: division by zero (line 4: ",
    ),
    "hook_exits": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_metrics():\n    raise SystemExit",
        "SystemExit",
    ),
    "wrong_type": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    return ['mine']",
        "register_templates returned 'mine', not a Template",
    ),
    "gives_nothing": (
        "from fasttune import hookimpl\n@hookimpl\ndef register_templates():\n    pass",
        "TypeError: 'NoneType' object is not iterable",
    ),
    "no_name": (
        GOOD.replace('    name="NAME",', ""),
        "Missing required argument 'name' (line 4: TEMPLATE = Template(",
    ),
    "no_format": (GOOD.replace("{instruction}", "{ask}"), "no column 'ask' that a prompt may show"),
    "metric_name": (
        "from fasttune import Exporter, Metric, hookimpl\n@hookimpl\ndef register_metrics():\n"
        "    return [Metric('a/b', '', len)]",
        "'a/b'",
    ),
    "metric_measure": (
        "from fasttune import Exporter, Metric, hookimpl\n@hookimpl\ndef register_metrics():\n"
        "    return [Metric('a', '', 5)]",
        "the metric 'a' needs a function, and better as 'higher', 'lower' or '' (line 4: ",
    ),
    "exporter_class": (
        "from fasttune import Exporter, hookimpl\n@hookimpl\ndef register_exporters():\n"
        "    return [Exporter]",
        "not a Exporter",
    ),
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
        ("thing", "fasttune_plugins.alpaca:ALPACA"),
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
    plugin(tmp_path, "lazy", text=GOOD.replace("return [TEMPLATE]", "yield TEMPLATE"))
    assert loaded(tmp_path).template("lazy").name == "lazy"


def test_two_templates_of_one_name_name_both_providers(tmp_path):
    first, second = plugin(tmp_path, "one", "same"), plugin(tmp_path, "two", "same")
    message = reports(tmp_path)
    assert "template 'same' is provided twice" in message
    assert f"one (file, {first})" in message and f"two (file, {second})" in message


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
        f"not loaded: broken ({path}): ZeroDivisionError: division by zero (line 1: 1 / 0)\n"
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


def test_files_of_one_name_are_modules_of_their_own(tmp_path):
    text = GOOD.replace("@hookimpl", "class Own: pass\n\n@hookimpl")
    plugins = [load_plugin(plugin(tmp_path / name, "mine", text=text)) for name in "ab"]
    modules = [each.manager.get_plugin("mine") for each in plugins]
    assert [sys.modules[module.Own.__module__] for module in modules] == modules
    assert [module.__file__ for module in modules] == [f"{tmp_path}/{n}/mine.py" for n in "ab"]


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
    with pytest.raises(FasttuneError, match="no such plugin file"):
        load_plugin(tmp_path / "notes.txt")


def test_what_a_run_keeps_of_a_template():
    facts = load_plugins().facts("reasoning")
    template = load_plugins().template("reasoning")
    assert facts == {
        "name": "reasoning",
        "identity": template.identity,
        "declaration": template.declaration,
        "plugin": "reasoning",
        "distribution": "fasttune",
        "version": distribution("fasttune").version,
        "path": sys.modules["fasttune_plugins.reasoning"].__file__,
    }


def section(hook: str) -> str:
    """The section of the docs about a hook."""
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    return text.partition(f"\n### {hook}\n")[2].partition("\n### ")[0]


def example(hook: str, tmp_path: Path):
    """The plugins with one that consists of the example in the docs."""
    (code,) = re.findall(r"```python\n(.*?)```", section(hook), re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    return loaded(tmp_path)


def test_hook_register_templates(tmp_path):
    plugins = example("register_templates", tmp_path)
    assert plugins.template("plain").parse(" 5") == {"response": "5"}
    assert plugins.provided()["example"] == ["template plain"]


def test_hook_register_metrics(tmp_path):
    plugins = example("register_metrics", tmp_path)
    answers = [
        Answer(Row.of({}), t, {"response": t}, "eos", 3)
        for t in ("two words", "and now four words")
    ]
    assert score(answers, [plugins.metrics["words"][0]]) == {"words": 3}
    assert plugins.provided()["example"] == ["metric words"]


def test_hook_register_exporters(tmp_path):
    plugins = example("register_exporters", tmp_path)
    read = dict.fromkeys(("prompt_ids", "logits", "greedy", "eos_ids"), print)
    job = SimpleNamespace(
        folder=tmp_path, open_adapter=lambda folder: SimpleNamespace(opened=folder, **read)
    )
    assert plugins.exporters["noted"][0].open(job).opened == tmp_path
    assert plugins.provided()["example"] == ["exporter noted"]


def test_hook_training_callbacks(tmp_path):
    plugins = example("training_callbacks", tmp_path)
    (note,) = plugins.training_callbacks(tmp_path)
    note.on_train_end(None, SimpleNamespace(global_step=7), None)
    assert (tmp_path / "note.txt").read_text() == "7 steps"
    assert plugins.provided()["example"] == ["training callbacks"]


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("[5]", "TypeError: it returned 5, which is not a TrainerCallback"),
        ("None", "TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_training_callbacks_that_fail_name_the_plugin(tmp_path, returned, error):
    text = (
        "from fasttune import hookimpl\n@hookimpl\ndef training_callbacks():\n"
        f"    return {returned}\n"
    )
    path = plugin(tmp_path, "broken", text=text)
    with pytest.raises(FasttuneError) as caught:
        loaded(tmp_path).training_callbacks(tmp_path)
    assert caught.value.message == f"plugin 'broken', training_callbacks fails: {error}"
    assert str(path) in caught.value.where


CODE = """
from fasttune import Exporter, hookimpl

def step():
    return 1 / 0

class Mine(Exporter):
    name = "mine"

    def write(self, job):
        job.write_merged(step)

@hookimpl
def register_exporters():
    return [Mine()]
"""


def test_an_exception_within_a_plugin_names_its_file_and_line(tmp_path):
    path = plugin(tmp_path, "mine", text=CODE)
    plugins = loaded(tmp_path)
    exporter = plugins.exporters["mine"][0]
    job = SimpleNamespace(write_merged=lambda function: function())
    with pytest.raises(FasttuneError) as caught, plugins.blaming():
        exporter.write(job)
    assert caught.value.message == "plugin 'mine' fails: ZeroDivisionError: division by zero"
    assert caught.value.where == f"{path}, line 5: return 1 / 0"


@pytest.mark.parametrize(
    "error", [OSError(28, "no room"), FasttuneError("ours"), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_a_plugin_is_left_as_it_is(tmp_path, error):
    def fail(function):
        raise error

    plugin(tmp_path, "mine", text=CODE)
    plugins = loaded(tmp_path)
    exporter = plugins.exporters["mine"][0]
    with pytest.raises(type(error)) as caught, plugins.blaming():
        exporter.write(SimpleNamespace(write_merged=fail))
    assert caught.value is error
    with pytest.raises(ZeroDivisionError), plugins.blaming():
        1 / 0  # noqa: B018


ANSWER = Answer(Row.of({"instruction": "?"}), "Paris", {"response": "Paris"}, "eos", 3)


@pytest.mark.parametrize(
    "value",
    ["5", "much", float("nan"), float("inf"), (1, 2, 3), (1, -1), (1, None), [1], {}, object()],
)
def test_a_metric_that_gives_no_figure(value):
    with pytest.raises(
        FasttuneError, match="the metric 'broken' fails: TypeError: it ret"
    ) as caught:
        score([ANSWER], [Metric("broken", "", lambda answer: value)])
    assert __file__ in caught.value.where and "Paris" in caught.value.where


def test_a_metric_that_fails_names_its_file_and_line():
    def measure(answer):
        return 1 / len(answer.samples)

    with pytest.raises(FasttuneError) as caught:
        score([ANSWER], [Metric("broken", "", measure)])
    assert caught.value.message == "the metric 'broken' fails: ZeroDivisionError: division by zero"
    assert caught.value.where.startswith(f"{__file__}, line ")
    assert caught.value.where.endswith(": return 1 / len(answer.samples)\nanswer: 'Paris'")


def test_every_hook_has_a_test_a_docs_section_and_an_example():
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    hooks = [name for name, caller in vars(manager.hook).items() if not name.startswith("_")]
    assert hooks, "pluggy lists none"
    for hook in hooks:
        assert f"test_hook_{hook}" in globals(), f"write test_hook_{hook}"
        assert section(hook), f"write a section '### {hook}' in {DOCS}"
        assert "```python\n" in section(hook)


BLOCKS = [
    block
    for name in ("templates.md", "plugins.md")
    for block in re.findall(r"```python\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
]


def test_the_docs_show_plugins():
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_in_the_docs_is_a_plugin(tmp_path, number):
    (tmp_path / "block.py").write_text(BLOCKS[number])
    plugins = load_plugin(tmp_path / "block.py")
    assert plugins.provided()["block"]
    assert all(isinstance(template, Template) for template, _ in plugins.templates.values())
    assert all(isinstance(metric, Metric) for metric, _ in plugins.metrics.values())
