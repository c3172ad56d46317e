"""Plugins that loop, print, exit or give what they must not give: each is named, with its place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fasttune import Answer, Exporter, FasttuneError, Metric, Template, given, learn
from fasttune.data.load import load
from fasttune.plugins import guard
from fasttune.plugins.discovery import load_plugin, load_plugins
from fasttune.plugins.guard import Overdue, PluginError, call, watched
from fasttune.plugins.metric import score
from fasttune.plugins.registry import guarded_callback
from tests.conftest import cli, rows, write_rows

TEMPLATE = """
import os, random, sys, time
from fasttune import Metric, Template, given, hookimpl, learn

class Mine(Template):
    name = "mine"

    def segments(self, row):
        yield given("instruction", f"Q: {row['instruction']}\\nA:")
        yield learn("response", row.get("output", ""))

@hookimpl
def register_templates():
    return [Mine()]
"""
YIELD = '        yield given("instruction", f"Q: {row[\'instruction\']}\\nA:")'


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.3)
    monkeypatch.setattr("fasttune.plugins.registry.LOADING", 0.3)
    monkeypatch.setattr(guard, "TICK", 0.05)
    monkeypatch.setattr("fasttune.plugins.template.MOST_SEGMENTS", 100)


def written(folder, old="", new=""):
    folder.mkdir(exist_ok=True)
    assert old in TEMPLATE
    (folder / "mine.py").write_text(TEMPLATE.replace(old, new) if old else TEMPLATE + new)
    return folder / "mine.py"


# Rendering: what is wrong, and what the error holds.
WRONG_RENDERING = {
    "strings": (YIELD, "        yield row['instruction']", "is no segment of text"),
    "None": (YIELD, "        yield None", "None is no segment of text"),
    "tuples": (YIELD, "        yield ('a', 'b', True)", "('a', 'b', True) is no segment of text"),
    "no text": (YIELD, "        yield given('a', 5)", "is no segment of text"),
    "no name": (YIELD, "        yield given(None, 'a')", "is no segment of text"),
    "half a pair": (YIELD, "        yield given('a', '\\ud800')", "half of a surrogate pair"),
    "random": (YIELD, "        yield given('a', str(random.random()))", "at each call: '"),
    "counting": (
        YIELD,
        "        self.n = getattr(self, 'n', 0) + 1\n        yield given('a', f'{self.n}')",
        "gives other text at each call: ",
    ),
    "other segments": (
        YIELD,
        "        self.n = not getattr(self, 'n', False)\n        yield given(f'{self.n}', 'a')",
        "at each call: the same text in other segments",
    ),
    "without end": (YIELD, "        while True: yield given('a', 'b')", "100 segments and more"),
    "loops": (YIELD, "        while True: pass", "was stopped: it took more than"),
    "sleeps": (YIELD, "        time.sleep(100)", "was stopped: it took more than"),
    "loops and catches": (
        YIELD,
        "        while True:\n            try: time.sleep(0.01)\n            except: pass",
        "was stopped: it took more than",
    ),
    "exits": (YIELD, "        sys.exit(0)", "SystemExit: 0"),
    "is interrupted": (YIELD, "        raise KeyboardInterrupt", "KeyboardInterrupt"),
    "parse gives None": (
        "    def segments",
        "    def parse(self, text):\n        return None\n\n    def segments",
        "parse() gives None, which is no dict",
    ),
    "parse gives numbers": (
        "    def segments",
        "    def parse(self, text):\n        return {'response': 5}\n\n    def segments",
        "parse() gives {'response': 5}, which is not text",
    ),
}


@pytest.mark.parametrize("kind", WRONG_RENDERING)
@pytest.mark.parametrize("command", ["run", "data", "preview"])
def test_a_template_that_does_not_give_text_is_named_with_its_file_and_line(
    tmp_path, impatient, kind, command
):
    old, new, told = WRONG_RENDERING[kind]
    path = written(tmp_path / "p", old, new)
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    words = {
        "run": ("run", "--dry-run", "-t", "mine", "-d", data),
        "data": ("data", data, "--template", "mine"),
        "preview": ("preview", "-t", "mine", "--data", data),
    }[command]
    ended = cli(*words, "--plugins-dir", path.parent)
    assert ended.status == 2 and ended.out == "", ended.err
    assert "template 'mine'" in ended.err and told in ended.err
    assert f"{path}, line " in ended.err and "what to do: " in ended.err
    assert ended.err.count("row ") < 5  # one error, not one for each row


@pytest.mark.parametrize("kind", WRONG_RENDERING)
def test_the_check_finds_the_same(tmp_path, impatient, kind, phi2_tokenizer):
    from fasttune import check_template

    old, new, told = WRONG_RENDERING[kind]
    template = load_plugin(written(tmp_path / "p", old, new)).untried("mine")
    try:
        found = "\n".join(row for each in check_template(template) for row in each.rows)
    except Overdue as error:
        found = str(error)
    told = told.removeprefix("gives other text ").removeprefix("at each call: ")
    assert told in found


# Attributes: the line in the plugin, and what is told.
WRONG_ATTRIBUTE = {
    "name = None": "name is None",
    "name = 5": "name is 5",
    "name = ''": "name is ''",
    "name = '../../x'": "name is '../../x'",
    "name = 'a/b'": "name is 'a/b'",
    "name = '.hidden'": "name is '.hidden'",
    "name = 'two\\nlines'": "name is 'two\\nlines'",
    "name = '\\ud800'": "name is '\\ud800'",
    "description = None": "description is None, not text",
    "description = '\\ud800'": "description is '\\ud800', not text",
    "required = None": "required is None, not a tuple of texts",
    "required = 'output'": "required is 'output', not a tuple of texts",
    "required = (1,)": "required is (1,), not a tuple of texts",
    "tags = '<|a|>'": "tags is '<|a|>', not a tuple of texts",
    "tags = ('',)": "tags is ('',), not a tuple of texts",
    "targets = {}": "targets is {}, not a dict with at least one section",
    "targets = 'response'": "targets is 'response', not a dict",
    "targets = {'response': None}": "not a dict with at least one section",
    "system = None": "system is None, not text",
    "segments = None": "there is no method segments()",
}


@pytest.mark.parametrize("line", WRONG_ATTRIBUTE)
def test_a_wrong_attribute_is_refused_where_the_plugin_is_loaded(tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(TEMPLATE.replace("@hookimpl", f"Mine.{line}\n\n@hookimpl"))
    plugins = load_plugins(tmp_path)
    plugins.provided()
    [problem] = plugins.problems
    assert problem.path == str(path) and WRONG_ATTRIBUTE[line] in problem.error
    assert "(line 5)" in problem.error
    ended = cli("templates", "check", path)
    assert ended.status == 2 and WRONG_ATTRIBUTE[line] in ended.err


@pytest.mark.parametrize(
    ("hook", "made", "told"),
    [
        ("metrics", "[Metric('a/b', '', len)]", "name is 'a/b'"),
        ("metrics", "[Metric('a', None, len)]", "description is None"),
        ("metrics", "[Metric('a', '', 5)]", "measure is 5, not a function"),
        ("metrics", "[Metric('a', '', len, 'up')]", "better is 'up'"),
        ("metrics", "'a'", "gave 'a', which is no Metric"),
        ("metrics", "5", "'int' object is not iterable"),
        ("exporters", "[type('A', (Exporter,), {'name': 'a'})()]", "there is no method write()"),
        ("exporters", "[type('A', (Exporter,), {'name': '..'})()]", "name is '..'"),
        (
            "exporters",
            "[type('A', (Exporter,), {'name': 'a', 'options': {'q': 'x'}})()]",
            "options has {'q': 'x'}",
        ),
        ("exporters", "[Exporter]", "which is no Exporter"),
    ],
)
def test_a_wrong_metric_or_exporter_is_refused_where_it_is_loaded(tmp_path, hook, made, told):
    (tmp_path / "mine.py").write_text(
        "from fasttune import Exporter, Metric, hookimpl\n@hookimpl\n"
        f"def register_{hook}():\n    return {made}\n"
    )
    plugins = load_plugins(tmp_path)
    plugins.provided()
    [problem] = plugins.problems
    assert told in problem.error and problem.name == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "while True: pass",
        "import time; time.sleep(100)",
        "raise SystemExit(0)",
        "raise KeyboardInterrupt",
        "from fasttune import hookimpl\n@hookimpl\ndef register_metrics():\n    while True: pass",
        "from fasttune import hookimpl\n@hookimpl\ndef register_metrics():\n"
        "    raise KeyboardInterrupt",
        "class Odd(BaseException): pass\nraise Odd",
    ],
)
def test_a_plugin_that_does_not_load_does_not_end_the_command(tmp_path, impatient, text):
    (tmp_path / "broken.py").write_text(text)
    ended = cli("templates", "list", "--json", "--plugins-dir", tmp_path)
    assert ended.status == 0 and json.loads(ended.out)
    assert "plugin broken is not loaded: " in ended.err


def test_the_clock_is_off_again(impatient):
    with pytest.raises(Overdue):
        call("me", "it", time.sleep, 100)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_time_of_a_stretch_is_not_that_of_a_call(impatient):
    with watched():
        assert [call("me", "it", str, n) for n in range(3) if not time.sleep(0.2)] == list("012")
        with pytest.raises(Overdue, match="it was stopped: it took more than 0.3 seconds"):
            call("me", "it", time.sleep, 100)
        assert call("me", "it", str, 5) == "5"


def test_a_call_within_a_call_has_the_time_that_is_left(impatient):
    def outer():
        call("inner", "the inner one", time.sleep, 100, seconds=50)

    with pytest.raises(Overdue, match="the outer one was stopped"):
        call("outer", "the outer one", outer)


def test_another_thread_has_no_clock_and_the_same_errors():
    found = []

    def run():
        try:
            call("me", "it", int, "x")
        except PluginError as error:
            found.append(error.message)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["it fails: ValueError: invalid literal for int() with base 10: 'x'"]


def test_a_ctrl_c_of_the_person_interrupts_whatever_the_plugin_does():
    def swallows():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            pass

    for function in (lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)), swallows):
        with pytest.raises(KeyboardInterrupt):
            call("me", "it", function)


def test_sigterm_is_no_fault_of_a_plugin():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
    try:
        with pytest.raises(KeyboardInterrupt):
            call("me", "it", lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_takes_itself_away_is_not_put_back():
    before = signal.getsignal(signal.SIGINT)
    asked = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    call("me", "it", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert asked == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is before


def test_a_template_that_fails_on_all_rows_is_one_error(tmp_path):
    path = written(tmp_path / "p", "row['instruction']", "row['question'] ")
    data = write_rows(tmp_path / "rows.jsonl", rows(40))
    ended = cli("data", data, "--template", "mine", "--plugins-dir", path.parent)
    assert ended.status == 2
    assert "template 'mine' fails: KeyError: 'question', with each of the 40 rows" in ended.err
    assert f"{path}, line 9: yield given(" in ended.err and len(ended.err.splitlines()) == 4


def test_a_template_that_fails_on_some_rows_names_the_rows(tmp_path):
    path = written(tmp_path / "p", "row['instruction']", "row['instruction'][5:6] or 1 / 0")
    data = write_rows(tmp_path / "r.jsonl", [*rows(3), {"instruction": "hm", "output": "1"}])
    loaded = load(data, load_plugin(path).template("mine"))
    assert [(f.row, f.message) for f in loaded.findings] == [
        (4, "template 'mine' fails: ZeroDivisionError: division by zero")
    ]


def test_a_row_on_which_a_template_loops_is_named(tmp_path, impatient):
    old = "row['instruction']"
    path = written(tmp_path / "p", old, f"{old}[:99] if 'x' not in {old} else time.sleep(99)")
    data = write_rows(tmp_path / "r.jsonl", [*rows(3), {"instruction": "x", "output": "1"}])
    ended = cli("run", "--dry-run", "-d", data, "-t", "mine", "--plugins-dir", path.parent)
    assert ended.status == 2 and "template 'mine' was stopped" in ended.err
    assert "row 4" in ended.err


def test_what_plugins_print_is_on_standard_error(tmp_path):
    old = "    def segments(self, row):"
    text = (
        "    print('class')\n" + old + "\n        print('row')\n        os.system('echo program')"
    )
    path = written(tmp_path / "p", old, text)
    path.write_text("print('import')\n" + path.read_text())
    command = ["templates", "show", "mine", "--json", "--plugins-dir", str(path.parent)]
    done = subprocess.run(
        [sys.executable, "-c", f"from fasttune.cli import main; main({command!r})"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["name"] == "mine"
    assert {"import", "class", "row", "program"} <= set(done.stderr.split())


ANSWER = Answer({}, "Paris", {"response": "Paris"}, "eos", 3)


@pytest.mark.parametrize(
    "value",
    ["5", "much", float("nan"), float("inf"), (1, 2, 3), (1, -1), (1, None), [1], {}, object()],
)
def test_a_metric_that_gives_no_figure(value):
    with pytest.raises(PluginError, match="the metric 'broken' fails: it gives ") as caught:
        score([ANSWER], [Metric("broken", "", lambda answer: value)])
    assert __file__ in caught.value.where and "Paris" in caught.value.where


def test_a_metric_that_loops_and_one_that_prints(impatient, capsys):
    def loops(answer):
        while True:
            pass

    with pytest.raises(Overdue, match="the metric 'broken' was stopped"):
        score([ANSWER], [Metric("broken", "", loops)])
    assert score([ANSWER], [Metric("a", "", lambda answer: print("hm") or True)]) == {"a": 1}
    assert capsys.readouterr() == ("", "hm\n")


class Odd(Exporter):
    name = "odd"

    def write(self, job):
        print("writing")
        raise job

    def open(self, job):
        return 5

    def bounds(self, job):
        return 0.5

    def usage(self, job):
        return None

    def needed_bytes(self, job):
        return "many"


@pytest.mark.parametrize("method", ["open", "bounds", "usage", "needed_bytes"])
def test_an_exporter_that_gives_a_wrong_type(method):
    with pytest.raises(PluginError, match=f"exporter 'odd': {method}\\(\\) gives ") as caught:
        getattr(Odd(), method)(None)
    assert __file__ in caught.value.where


def test_an_exporter_that_fails(capsys):
    with pytest.raises(PluginError, match="exporter 'odd' fails: ValueError: bad"):
        Odd().write(ValueError("bad"))
    assert capsys.readouterr() == ("", "writing\n")
    for error in (OSError(28, "no room"), FasttuneError("of the job")):
        with pytest.raises(type(error)):
            Odd().write(error)


def test_a_callback_that_fails_is_named_and_prints_to_standard_error(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Note:\n    def on_step_end(self, args, *, step):\n        print('step', step)\n"
        "        return 1 / (5 - step)\n"
    )
    made = load_plugin(path)
    callback = made.manager.get_plugin("mine").Note()
    callback = guarded_callback(callback, made.providers["mine"])
    assert callback.on_step_end(None, step=4) == 1
    with pytest.raises(PluginError, match="a callback of plugin 'mine' fails: ZeroDiv") as caught:
        callback.on_step_end(None, step=5)
    assert caught.value.where == f"{path}, line 4: return 1 / (5 - step)"
    assert capsys.readouterr() == ("", "step 4\nstep 5\n")


def test_a_template_may_build_on_another_and_catch_what_it_raises():
    class First(Template):
        name = "first"

        def segments(self, row):
            yield given("a", row["missing"])

    class Second(First):
        name = "second"

        def segments(self, row):
            try:
                yield from super().segments(row)
            except KeyError:
                yield given("a", "none")
            yield learn("b", "c")

    assert Second().render({}) == "nonec"


def test_a_hundred_thousand_rows_cost_next_to_nothing():
    class Plain(Template):
        name = "plain"

        def segments(self, row):
            yield given("a", "b")

    template, count = Plain(), 20_000
    plain = Plain.segments.__wrapped__

    def timed(function):
        began = time.perf_counter()
        for _ in range(count):
            function({})
        return (time.perf_counter() - began) / count

    with watched():
        least = min(
            timed(template.segments) - timed(lambda row: list(plain(template, row)))
            for _ in range(3)
        )
    assert least < 2e-5  # seconds a row; 2e-6 on an idle machine
