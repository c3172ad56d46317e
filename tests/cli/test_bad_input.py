"""Bad input to every command: three lines, the exit status, no traceback, nothing left behind.

A row of the table is (name, files, command, exit, what the lines hold):

- name: of the case, unique.
- files: path -> what is written there first: text, bytes, or a function of the path.
- command: as typed after `fasttune`, in a folder with rows.jsonl (20 good rows), and with model/ (a
  tokenizer and a config.json of a Phi) and runs/old (a finished run) where it names these.
- exit: 2 bad input, 1 failed, 0 taken after all.
- holds: texts of which each has to be on standard error, or on standard output for exit 0.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fasttune import api
from fasttune.runs import Run
from tests.cli.bad_folders import ADAPTERS, CHECKPOINTS, MODELS, RUNS
from tests.conftest import PHI2, build_phi2_tokenizer, cli, rows, write_rows

SECONDS = 30
"""A case that takes longer hangs."""


class Hangs(BaseException):
    """Nobody catches it."""


Files = Mapping[str, "str | bytes | Callable[[Path], Any]"]
Case = tuple[str, Files, str, int, tuple[str, ...]]


def jsonl(*written: object) -> str:
    """Lines of JSON; text is taken as it is."""
    return "".join((w if isinstance(w, str) else json.dumps(w)) + "\n" for w in written)


def good(**changed: object) -> dict[str, object]:
    """A good row but for what is changed."""
    return {**rows(1)[0], **changed}


MISUSE: list[Case] = [
    ("no command", {}, "", 2, ("no command is given",)),
    ("no command of a group", {}, "runs", 2, ("no command is given", "where: fasttune runs")),
    ("no such command", {}, "rum", 2, ("No such command 'rum'", "did you mean 'run'")),
    ("no such subcommand", {}, "runs lst", 2, ("No such command 'lst'", "did you mean 'list'")),
    ("no such option", {}, "run --templat x", 2, ("--templat", "did you mean '--template'")),
    ("no such short option", {}, "run -z", 2, ("-z", "where: fasttune run")),
    ("an option without its value", {}, "run --data", 2, ("--data", "where: fasttune run --data")),
    ("one argument too many", {}, "doctor now", 2, ("now", "where: fasttune doctor")),
    ("a flag with a value", {}, "run --dry-run=yes", 2, ("--dry-run",)),
    ("a missing argument", {}, "generate", 2, ("run", "where: fasttune generate")),
    ("a missing option", {}, "preview", 2, ("--template", "where: fasttune preview")),
    (
        "no number",
        {},
        "data --max-length many",
        2,
        ("integer", "where: fasttune data --max-length many"),
    ),
    ("no such budget", {}, "compare --templates alpaca --budget dollars", 2, ("--budget",)),
    ("no such plugins folder", {}, "--plugins-dir none plugins", 2, ("--plugins-dir: none",)),
    ("no run to export", {}, "export", 2, ("no run is given",)),
    ("two sources of settings", {}, "run --resume old lora.r=4", 2, ("keeps its settings",)),
]

SETTINGS: list[Case] = [
    (setting, {}, f"run -d rows.jsonl {shlex.quote(setting)}", 2, (f"where: {setting}", holds))
    for setting, holds in {
        "train.max_steps=1e30": "from 1 to 1000000000",
        "train.max_steps=-1": "from 1 to",
        "train.max_steps=.inf": "a whole number",
        "train.epochs=1e300": "above 0 to 1e+06",
        "train.epochs=0": "above 0",
        "train.epochs=.nan": "above 0",
        "train.batch_size=99999999999": "from 1 to 1000000",
        "train.batch_size=0": "from 1 to 1000000",
        "train.batch_size=1.5": "a whole number",
        "train.gradient_accumulation=-3": "from 1",
        "train.learning_rate=inf": "above 0",
        "train.learning_rate=0": "above 0",
        "train.learning_rate=fast": "a number",
        "train.weight_decay=inf": "from 0 to 100",
        "train.weight_decay=-0.1": "from 0 to 100",
        "train.max_grad_norm=nan": "above 0",
        "train.warmup_steps=-1": "from 0",
        "train.optimizer=adamw_torhc": "did you mean 'adamw_torch'",
        "train.optimizer=": "a text",
        "train.schedule=cosin": "one of linear",
        "train.schedule=[linear]": "one of linear",
        "train.packing=maybe": "true or false",
        "train.report_to=tensorbord": "did you mean 'tensorboard'",
        "train.report_to={a: b}": "a list",
        "train.save_steps=0": "from 1",
        "train.eval_steps=-5": "from 1",
        "train.log_steps=0": "from 1",
        "train.early_stopping=0": "from 1",
        "train.save_total_limit=0": "from 1",
        "train.epoch=2": "did you mean 'epochs'",
        "train=fast": "set one of",
        "trian.epochs=2": "did you mean 'train'",
        "seed=-1": "from 0 to 4294967295",
        "seed=4294967296": "from 0 to 4294967295",
        f"seed={'9' * 400}": "from 0 to 4294967295",
        "seed=true": "a whole number",
        "lora.r=0": "from 1",
        "lora.r=1e9": "from 1",
        "lora.alpha=0": "above 0",
        "lora.alpha=.inf": "above 0",
        "lora.dropout=1": "below 1",
        "lora.rslora=1": "true or false",
        "lora.targets={q_proj: 1}": "a list",
        "lora.targets=[[q_proj]]": "a text",
        "model.max_length=0": "from 1",
        "model.max_length=1e12": "from 1",
        "model.quantization=int3": "one of auto",
        "model.precision=[]": "one of auto",
        'model.name=""': "not empty",
        'data.train="  "': "not empty",
        "data.eval_fraction=1": "below 1",
        "data.eval_fraction=.nan": "below 1",
        "data.split_seed=-1": "from 0",
        "data.limit=0": "from 1",
        "data.columns=3": "a mapping",
        "data.columns={instruction: null}": "a text",
        "data.overlong=keep": "one of drop",
        "samples.count=-1": "from 0",
        "samples.max_new_tokens=0": "from 1",
        "samples.batch_size=1e18": "from 1",
        "template=../../x": "a name",
        "template=[a]": "a text",
        'output=""': "not empty",
        "lora.r=[": "",
        "a..b=3": "there is no setting",
        "lora.r={1: 2, 1: 3}": "twice",
        f"lora.r={'[' * 10000}": "nested more than 20 deep",
    }.items()
    for holds in [holds]
] + [
    ("a setting without a value", {}, "run -d rows.jsonl lora.r", 2, ("lora.r", "key=value")),
    ("a setting without a key", {}, "run -d rows.jsonl =3", 2, ("=3", "key=value")),
    ("--template of no name", {}, "run -t ../x", 2, ("where: --template ../x",)),
    ("--data empty", {}, "run -d ''", 2, ("where: --data", "not empty")),
    ("--model empty", {}, "run -d rows.jsonl -m ''", 2, ("where: --model", "not empty")),
    ("--output empty", {}, "run -d rows.jsonl -o ''", 2, ("where: --output", "not empty")),
    ("a setting of plan", {}, "plan --gpu t4 train.batch_size=0", 2, ("train.batch_size=0",)),
    ("a setting of compare", {}, "compare --templates alpaca lora.r=0", 2, ("where: lora.r=0",)),
    ("a setting of bench", {}, "bench lora.r=0", 2, ("where: lora.r=0",)),
]

CONFIGS: list[Case] = [
    (f"config: {name}", {"c.yaml": content}, "run -d rows.jsonl -c c.yaml", 2, ("c.yaml", *holds))
    for name, content, *holds in [
        ("a wrong value has its line", "train:\n  epochs: 1\n  batch_size: 0\n", "c.yaml, line 3"),
        ("an unknown key has its line", "seed: 1\ntrian: {epochs: 2}\n", "c.yaml, line 2"),
        ("no YAML", "a: [", "cannot read the config"),
        ("a list", "- 1\n- 2\n", "the config is no mapping"),
        ("a text", "reasoning", "the config is no mapping"),
        ("a key twice", "lora: {r: 8, r: 16}\n", "the key 'r' is there twice"),
        ("a group twice", "lora: {r: 8}\nseed: 1\nlora: {r: 16}\n", "there twice", "line 3"),
        ("10,000 brackets", "a: " + "[" * 10000, "nested more than 20 deep"),
        ("10,000 braces", "{a: " * 10000, "nested more than 20 deep"),
        ("10,000 levels of dashes", "- " * 10000, "nested more than 20 deep"),
        ("an alias", "template: &a alpaca\noutput: *a\n", "aliases"),
        (
            "a billion laughs",
            "a: &a [x, x]\n"
            + "".join(
                f"{chr(b + 1)}: &{chr(b + 1)} [{', '.join(['*' + chr(b)] * 9)}]\n"
                for b in range(97, 107)
            ),
            "aliases",
        ),
        ("a python object", "a: !!python/object/apply:os.system ['touch x']\n", "cannot read"),
        ("bytes that are no UTF-8", b"template: \xff\n", "cannot read"),
        ("a NUL", b"template: a\0b\n", "cannot read"),
        ("a number of 5,000 digits", "seed: " + "9" * 5000, "cannot read"),
        ("an impossible date", "seed: 2020-99-99", "cannot read"),
        ("a date", "template: 2020-01-01", "a text"),
        ("two documents", "seed: 1\n---\nseed: 2\n", "cannot read"),
        ("an unhashable key", "? [a, b]\n: 1\n", "cannot read"),
        ("no text as a key", "1: 2\n", "there is no setting '1'"),
        ("more than a megabyte", "#" * 2**21, "more than 1048576 bytes"),
        ("the template as a mapping", "template: {a: 1}\n", "a text"),
    ]
] + [
    ("config: no such file", {}, "run -c none.yaml", 2, ("none.yaml: No such file",)),
    ("config: a folder", {"c.yaml/x": ""}, "run -c c.yaml", 2, ("c.yaml: Is a directory",)),
    ("config: without end", {}, "run -c /dev/zero", 2, ("more than 1048576 bytes",)),
    ("config: empty name", {}, "run -c ''", 2, ("cannot read the config",)),
]


def plugin(old: str = "", new: str = "", hook: str = "") -> Files:
    """p/mine.py: a good template but for what is replaced, or a plugin of one hook alone."""
    text = MINE
    if hook:
        text = f"from fasttune import *\n@hookimpl\ndef {hook}\n"
    assert old in text
    return {"p/mine.py": text.replace(old, new) if old else text}


MINE = """
import random, sys, time
from fasttune import Template, given, hookimpl, learn

class Mine(Template):
    name = "mine"
    def segments(self, row):
        yield given("instruction", row["instruction"])
        yield learn("response", row.get("output", ""))

@hookimpl
def register_templates():
    return [Mine()]
"""
GIVEN = 'yield given("instruction", row["instruction"])'
NAME = 'name = "mine"'
ON_ROWS = "run --dry-run -d rows.jsonl -t mine --plugins-dir p"
LISTED = "templates list --plugins-dir p"
PLUGINS: list[Case] = [
    (f"a plugin, {name}", plugin(old, new), command, 2, ("mine", holds))
    for name, old, new, command, holds in (
        ("strings", GIVEN, "yield 'text'", ON_ROWS, "'text' is no segment of text"),
        ("None", GIVEN, "yield None", ON_ROWS, "mine.py, line 7"),
        ("tuples", GIVEN, "yield ('a', 'b', False)", ON_ROWS, "is no segment of text"),
        ("numbers", GIVEN, "yield given('a', 5)", ON_ROWS, "is no segment of text"),
        ("half a pair", GIVEN, "yield given('a', '\\ud800')", ON_ROWS, "surrogate pair"),
        ("random", GIVEN, "yield given('a', str(random.random()))", ON_ROWS, "at each call"),
        ("clock", GIVEN, "yield given('a', str(time.time_ns()))", ON_ROWS, "at each call"),
        ("no end", GIVEN, "while True: yield given('a', 'b')", ON_ROWS, "segments and more"),
        ("fails on all", GIVEN, "yield given('a', row['b'])", ON_ROWS, "each of the 20 rows"),
        ("exits", GIVEN, "sys.exit(0)", ON_ROWS, "SystemExit: 0"),
        ("interrupts", GIVEN, "raise KeyboardInterrupt", ON_ROWS, "fails: KeyboardInterrupt"),
        ("preview", GIVEN, "yield 5", "preview -t mine --plugins-dir p", "no segment of text"),
        ("show", GIVEN, "yield 5", "templates show mine --plugins-dir p", "no segment of text"),
        ("one file", GIVEN, "yield 5", "templates show mine --plugin p/mine.py", "no segment"),
        ("name None", NAME, "name = None", ON_ROWS, "name is None"),
        ("name a path", NAME, "name = '../../x'", ON_ROWS, "name is '../../x'"),
        ("name a number", NAME, "name = 5", ON_ROWS, "name is 5"),
        ("no name", NAME, "pass", ON_ROWS, "no attribute 'name'"),
        ("required None", NAME, f"{NAME}; required = None", ON_ROWS, "required is None"),
        ("required text", NAME, f"{NAME}; required = 'a'", ON_ROWS, "not a tuple of texts"),
        ("targets empty", NAME, f"{NAME}; targets = {{}}", ON_ROWS, "at least one section"),
        ("targets a list", NAME, f"{NAME}; targets = ['a']", ON_ROWS, "targets is ['a']"),
        ("tags text", NAME, f"{NAME}; tags = '<a>'", ON_ROWS, "tags is '<a>'"),
        ("system None", NAME, f"{NAME}; system = None", ON_ROWS, "system is None"),
        ("description 5", NAME, f"{NAME}; description = 5", ON_ROWS, "description is 5"),
        ("parse None", NAME, f"{NAME}; parse = lambda s, t: None", ON_ROWS, "is no dict"),
        ("parse a list", NAME, f"{NAME}; parse = lambda s, t: [t]", ON_ROWS, "is no dict"),
        ("prompt None", NAME, f"{NAME}; prompt = 5", ON_ROWS, "no method prompt()"),
        ("import exits", "@hookimpl", "raise SystemExit", ON_ROWS, "SystemExit"),
        ("import interrupts", "@hookimpl", "raise KeyboardInterrupt", ON_ROWS, "Interrupt"),
        ("no Python", GIVEN, "yield (", ON_ROWS, "SyntaxError"),
        ("NUL", GIVEN, "\0", ON_ROWS, "null bytes"),
    )
]
PLUGINS += [
    ("no such plugin", {}, "plugins --plugin none.py", 2, ("where: --plugin none.py",)),
    ("a plugin that is a folder", {"p/a.py": ""}, "plugins --plugin p", 2, ("--plugin p",)),
    ("a plugin that is no .py", {"a.txt": ""}, "plugins --plugin a.txt", 2, ("--plugin a.txt",)),
    (
        "a plugin nobody agreed to",
        {"plugins/mine.py": MINE, "run.yaml": "template: mine\n"},
        "run --dry-run -c run.yaml",
        2,
        ("where: plugins/mine.py", "--trust-plugins"),
    ),
    (
        "a plugin all may write",
        {"p/mine.py": lambda path: (path.write_text(MINE), path.chmod(0o666))},
        LISTED,
        2,
        ("everybody may write", "chmod o-w"),
    ),
    (
        "a folder all may write",
        {"p/mine.py": lambda path: (path.write_text(MINE), path.parent.chmod(0o1777))},
        LISTED,
        2,
        ("everybody may write", "chmod o-w"),
    ),
    *(
        (f"a plugin, hook {number}", plugin(hook=hook), LISTED, 0, ("alpaca",))
        for number, hook in enumerate(
            (
                "register_metrics(): return [Metric('a/b', '', len)]",
                "register_metrics(): return [Metric('a', None, len)]",
                "register_metrics(): return 'a'",
                "register_metrics(): return 5",
                "register_metrics(): raise SystemExit",
                "register_exporters(): return [5]",
                "register_exporters(): return [Exporter()]",
            )
        )
    ),
]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad-input") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PHI2))
    build_phi2_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def ground(tmp_path, monkeypatch, request):
    """The folder in which a command is run."""
    monkeypatch.chdir(tmp_path)
    for variable in ("FASTTUNE_PLUGINS", "FASTTUNE_PLUGINS_DIR", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)

    def hangs(number, frame):
        raise Hangs(f"no end after {SECONDS} s")

    train = api.train

    def trains(job, *arguments, **named):
        assert isinstance(job, Run), "a model is to be trained"
        return train(job, *arguments, **named)  # refused by what the run holds

    monkeypatch.setattr("fasttune.api.train", trains)

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def lay(ground: Path, files: Files, command: str, request: pytest.FixtureRequest) -> None:
    """Write what a case needs."""
    write_rows(ground / "rows.jsonl", rows(20))
    words = shlex.split(command)
    if "model" in words:
        (ground / "model").symlink_to(request.getfixturevalue("model"))
    if {"last", "old", "runs/old"} & {*words}:
        shutil.copytree(Path(__file__).parents[1] / "old_run", ground / "runs" / "old")
    for name, content in files.items():
        path = ground / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


def snapshot(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too, with the hash of what they hold."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def require_three_lines(err: str) -> None:
    """An error, a place and a remedy, none of them empty, and nothing but these at the end."""
    start = err.rindex("error: ") if "error: " in err else -1
    assert start >= 0, "no error is told"
    told = err[start:]
    for label in ("error: ", "\n  where: ", "\n  what to do: "):
        _, found, rest = told.partition(label)
        assert found and rest.partition("\n")[0].strip(), f"no {label.strip()!r} in:\n{told}"


def require_clean(err: str) -> None:
    for word in ("Traceback", "Exception ignored", ".tmp", ".part"):
        assert word not in err, err


TABLE = [*MISUSE, *SETTINGS, *CONFIGS, *RUNS, *CHECKPOINTS, *ADAPTERS, *MODELS, *PLUGINS]


def test_every_case_has_a_name_of_its_own():
    names = [case[0] for case in TABLE]
    assert len({*names}) == len(names)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case[0][:60])
def test_bad_input(case, ground, request):
    _, files, command, exit, holds = case
    lay(ground, files, command, request)
    before, cached = snapshot(ground), {*Path(os.environ["FASTTUNE_CACHE"]).rglob("*.tmp*")}
    ended = cli(*shlex.split(command))
    assert ended.status == exit, ended.err or ended.out
    require_clean(ended.err)
    if exit == 2:
        require_three_lines(ended.err)
    for text in holds:
        assert text in (ended.err if exit else ended.out)
    assert snapshot(ground) == before
    assert {*Path(os.environ["FASTTUNE_CACHE"]).rglob("*.tmp*")} == cached
