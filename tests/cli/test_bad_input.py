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

import faulthandler
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fasttune import start
from fasttune.runs import Run
from tests.cli.bad_folders import ADAPTERS, CHECKPOINTS, MODELS, RUNS
from tests.conftest import PHI2, build_phi2_tokenizer, cli, rows, write_rows

SECONDS = 120
"""A case that takes longer hangs: the traceback is printed, and the tests end."""

Files = Mapping[str, "str | bytes | Callable[[Path], Any]"]
Case = tuple[str, Files, str, int, tuple[str, ...]]


def jsonl(*written: object) -> str:
    """Lines of JSON; text is taken as it is."""
    return "".join((w if isinstance(w, str) else json.dumps(w)) + "\n" for w in written)


def good(**changed: object) -> dict[str, object]:
    """A good row but for what is changed."""
    return {**rows(1)[0], **changed}


ASKED = [{"role": "user", "content": "Name a river."}]
TOLD = [{"role": "assistant", "content": "The Ebro."}]

MISUSE: list[Case] = [
    ("no command", {}, "", 2, ("no command is given",)),
    ("no command of a group", {}, "runs", 2, ("no command is given", "where: fasttune runs")),
    ("no such command", {}, "rum", 2, ("No such command 'rum'", "did you mean 'run'")),
    ("another program's command", {}, "train", 2, ("what to do: did you mean 'run'? see",)),
    ("another program's subcommand", {}, "runs ls", 2, ("what to do: did you mean 'list'? see",)),
    ("a setting as an option", {}, "run --learning-rate 1e-4", 2, ("train.learning_rate=1e-4",)),
    ("a setting's other name", {}, "run --lr=1e-4", 2, ("write train.learning_rate=1e-4",)),
    ("a setting of compare as an option", {}, "compare --epochs 2", 2, ("train.epochs=2",)),
    ("a setting without its group", {}, "run learning_rate=1", 2, ("'train.learning_rate'",)),
    ("a misspelt last", {}, "generate lsat q", 2, ("there is no run 'lsat'",)),
    (
        "a misspelt last, with runs",
        {"runs/a/manifest.json": "{}"},
        "runs show lsat",
        2,
        ("did you mean 'last'? choose from: a, last",),
    ),
    (
        "a setting that answering does not take",
        {},
        "answer model rows.jsonl -t alpaca lora.r=2",
        2,
        ("'lora.r' is no setting for reading rows", "choose from: data.limit"),
    ),
    ("two files", {}, "data rows.jsonl rows.jsonl", 2, ("more than one is given",)),
    (
        "rows without reasoning",
        {"r.jsonl": jsonl({"instruction": "a", "output": "b"})},
        "run -t reasoning -d r.jsonl -m model --dry-run",
        2,
        ("use a template without it: alpaca",),
    ),
    (
        "an evaluation file of other columns",
        {"e.jsonl": jsonl({"prompt": "a", "completion": "b"})},
        "run -d rows.jsonl data.eval=e.jsonl --dry-run -m model",
        2,
        ("rename its columns",),
    ),
    ("no such subcommand", {}, "runs lst", 2, ("No such command 'lst'", "did you mean 'list'")),
    ("no such option", {}, "run --templat x", 2, ("--templat", "did you mean '--template'")),
    ("no such short option", {}, "run -z", 2, ("-z", "where: fasttune run")),
    ("an option without its value", {}, "run --data", 2, ("--data", "where: fasttune run --data")),
    ("one argument too many", {}, "doctor now", 2, ("now", "where: fasttune doctor")),
    ("a flag with a value", {}, "run --dry-run=yes", 2, ("--dry-run",)),
    ("a missing argument", {}, "generate", 2, ("RUN", "where: fasttune generate")),
    (
        "no number",
        {},
        "data --max-length many",
        2,
        ("integer", "where: fasttune data --max-length many"),
    ),
    ("no such budget", {}, "compare --templates alpaca --budget dollars", 2, ("--budget",)),
    *(
        (f"an empty path for {words}", {}, words, 2, ("an empty name is no path",))
        for words in (
            "--plugins-dir '' plugins",
            "plugins --plugins-dir=",
            "runs list -o ''",
            "export old -o ''",
            "compare --templates alpaca -o ''",
            "bench --output ''",
            "templates new mine --out ''",
        )
    ),
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
        "train.epochs=1e300": "above 0 to 1000000",
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
        "train.optimizer=": "a text",
        "train.schedule=cosin": "did you mean",
        "train.schedule=[linear]": "it takes one of",
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
        "lora.targets=[[q_proj]]": "a list of texts",
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
        "data.columns={instruction: null}": "a mapping",
        "data.overlong=keep": "one of drop",
        "samples.count=-1": "from 0",
        "samples.max_new_tokens=0": "from 1",
        "samples.batch_size=1e18": "from 1",
        "template=../../x": "a name",
        "template=[a]": "a name",
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
    (
        "an optimizer that is not here",
        {},
        "run -d rows.jsonl --dry-run train.optimizer=galore_adamw",
        2,
        ("'galore_adamw' is not installed", "no module galore_torch"),
    ),
    ("--template of no name", {}, "run -t ../x", 2, ("where: --template ../x",)),
    ("--data empty", {}, "run -d ''", 2, ("where: --data", "not empty")),
    ("--model empty", {}, "run -d rows.jsonl -m ''", 2, ("where: --model", "not empty")),
    ("--output empty", {}, "run -d rows.jsonl -o ''", 2, ("where: -o ''",)),
    *(
        (
            f"{command.split()[0]}: all steps are warm-up",
            {"c.yaml": "template: alpaca\ntrain: {max_steps: 1, warmup_steps: 5}\n"},
            f"{command} -c c.yaml -d rows.jsonl -m model",
            2,
            ("nothing would be learned: the only step is warm-up", "set train.warmup_steps=0"),
        )
        for command in ("data", "plan --gpu t4", "run --dry-run")
    ),
    ("a folder that is not UTF-8", {}, "run -d rows.jsonl -o \udcff", 2, ("a text in UTF-8",)),
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
        ("a list", "- 1\n- 2\n", "the config is not a mapping"),
        ("a text", "reasoning", "the config is not a mapping"),
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
        ("a date", "template: 2020-01-01", "a name"),
        ("two documents", "seed: 1\n---\nseed: 2\n", "cannot read"),
        ("an unhashable key", "? [a, b]\n: 1\n", "cannot read"),
        ("no text as a key", "1: 2\n", "there is no setting '1'"),
        ("more than a megabyte", "#" * 2**21, "more than 1048576 bytes"),
        ("the template as a mapping", "template: {a: 1}\n", "a name"),
    ]
] + [
    ("config: no such file", {}, "run -c none.yaml", 2, ("none.yaml: No such file",)),
    ("config: a folder", {"c.yaml/x": ""}, "run -c c.yaml", 2, ("c.yaml: Is a directory",)),
    ("config: without end", {}, "run -c /dev/zero", 2, ("more than 1048576 bytes",)),
    ("config: empty name", {}, "run -c ''", 2, ("an empty name is no path",)),
]


def plugin(old: str = "", new: str = "", hook: str = "") -> Files:
    """p/mine.py: a good template but for what is replaced, or a plugin of one hook alone."""
    text = COMPUTED if old in COMPUTED else DECLARED
    if hook:
        text = f"from fasttune import *\n@hookimpl\ndef {hook}\n"
    assert old in text
    return {"p/mine.py": text.replace(old, new) if old else text}


HOOK = """
@hookimpl
def register_templates():
    return [MINE]
"""
COMPUTED = f"""
import sys
from fasttune import Segment, Template, given, hookimpl, learn

class Mine(Template):
    required = ("instruction", "output")
    def segments(self, row):
        yield Segment("instruction", row["instruction"], False)
        yield Segment("response", row.get("output", ""), True)

MINE = Mine(name="mine")
{HOOK}"""
DECLARED = f"""
from fasttune import Template, choose, given, hookimpl, learn

MINE = Template(
    name="mine",
    parts=[given("instruction", "{{instruction}}\\n"), learn("response", "{{output}}")],
)
{HOOK}"""
YIELDED = 'yield Segment("instruction", row["instruction"], False)'
NAME, REQUIRED = 'name="mine"', 'required = ("instruction", "output")'
GIVEN, LEARNED = 'given("instruction", "{instruction}\\n")', 'learn("response", "{output}")'
ON_ROWS = "run --dry-run -d rows.jsonl -t mine --plugins-dir p -m model"
LISTED = "templates list --plugins-dir p"
PLUGINS: list[Case] = [
    (f"a plugin, {name}", plugin(old, new), command, 2, ("mine", holds))
    for name, old, new, command, holds in (
        ("strings", YIELDED, "yield 'text'", ON_ROWS, "segments() gives 'text'"),
        ("None", YIELDED, "yield None", ON_ROWS, "p/mine.py"),
        ("tuples", YIELDED, "yield ('a', 'b', False)", ON_ROWS, "Segment(name, text, train)"),
        ("numbers", YIELDED, "yield Segment('a', 5, False)", ON_ROWS, "segments() gives Segment("),
        ("no segments", YIELDED, "return None", ON_ROWS, "learns nothing"),
        ("no list", YIELDED, "return 5", ON_ROWS, "learns nothing"),
        ("fails on all", YIELDED, "yield row['b']", ON_ROWS, "mine.py, line 8: yield row['b']"),
        ("fails, why", YIELDED, "yield row['b']", ON_ROWS, "'mine' fails: KeyError: 'b'"),
        ("exits", YIELDED, "sys.exit(0)", ON_ROWS, "SystemExit: 0"),
        ("preview", YIELDED, "yield 5", f"preview {ON_ROWS[14:]}", "segments() gives 5"),
        ("show", YIELDED, "yield 5", "templates show mine --plugins-dir p", "segments() gives 5"),
        ("one file", YIELDED, "yield 5", "templates show mine --plugin p/mine.py", "gives 5"),
        ("name None", NAME, "name=None", ON_ROWS, "None is no name for a template"),
        ("name a path", NAME, "name='../../x'", ON_ROWS, "'../../x' is no name"),
        ("name a number", NAME, "name=5", ON_ROWS, "5 is no name"),
        ("no name", NAME, "", ON_ROWS, "Missing required argument 'name'"),
        ("required None", REQUIRED, "required = None", ON_ROWS, "Expected `array`, got `null`"),
        ("required text", REQUIRED, "required = 'a'", ON_ROWS, "Expected `array`, got `str`"),
        ("targets a list", REQUIRED, "targets = ['a']", ON_ROWS, "Expected `object`, got `array`"),
        ("tags text", REQUIRED, "tags = '<a>'", ON_ROWS, "Expected `array`, got `str`"),
        ("system None", NAME, f"{NAME}, system=None", ON_ROWS, "got `null`"),
        ("description 5", NAME, f"{NAME}, description=5", ON_ROWS, "Expected `str`, got `int`"),
        ("import exits", "@hookimpl", "raise SystemExit", ON_ROWS, "SystemExit"),
        ("no Python", YIELDED, "yield (", ON_ROWS, "SyntaxError"),
        ("NUL", YIELDED, "\0", ON_ROWS, "null bytes"),
        ("nothing learned", LEARNED, "", ON_ROWS, "'mine': it learns nothing, because"),
        ("nothing given", f"{GIVEN}, ", "", ON_ROWS, "part 1 'response': nothing is given before"),
        ("given after", LEARNED, f"{LEARNED}, {GIVEN}", ON_ROWS, "part 3 'instruction': it is gi"),
        ("no such column", "{instruction}", "{question}", ON_ROWS, "no column 'question'"),
        ("half a pair", "{instruction}", "\\ud800{instruction}", ON_ROWS, "surrogates not allowed"),
        ("no format string", "{instruction}", "{instruction", ON_ROWS, "part 1 'instruction': "),
        ("an attribute", "{instruction}", "{instruction.x}", ON_ROWS, "is not a plain column name"),
        ("an index", "{output}", "{output[0]}", ON_ROWS, "part 2 'response': '{output[0]}' is not"),
        ("inseparable", LEARNED, f"learn('a', '{{reasoning}}'), {LEARNED}", ON_ROWS,
         "part 3 'response': parse could not separate"),
        ("no default", '"{instruction}\\n"', "choose('input', {}, 'en')", ON_ROWS, "default 'en'"),
        ("a text of 5", '"{output}"', "5", ON_ROWS, "mine"),
    )
]  # fmt: skip
YAML = "run --dry-run -d rows.jsonl -t f.yaml -m model"
PARTS = 'parts:\n  - given: a\n    text: "{instruction} "\n  - learn: b\n    text: "{output}"\n'
PLUGINS += [
    (f"a format, {name}", {"f.yaml": text}, YAML, 2, ("f.yaml", *holds))
    for name, text, *holds in [
        ("no YAML", "a: [", "cannot read the format"),
        ("empty", "", "not a template"),
        ("a list", "- a\n", "Expected `object`, got `array`"),
        ("a list of letters", "parts: [a]\n", "line 1", "Expected `object`, got `str`"),
        ("a number for parts", "description: x\nparts: 5\n", "line 2", "got `int`"),
        ("an unknown key", f"sytem: x\n{PARTS}", "line 1", "no key 'sytem'", "mean 'system'"),
        ("an unknown key of a part", f"{PARTS}    wen: input\n", "no key 'wen'", "mean 'when'"),
        ("a number as text", PARTS.replace('"{output}"', "5"), "line 5", "got `int`"),
        ("nothing learned", PARTS.partition("  - learn")[0], "learns nothing"),
        ("both", f"{PARTS}    given: b\n", "it needs one section"),
        ("an unknown column", PARTS.replace("instruction", "question"), "line 2", "'question'"),
        ("a name that is a path", f"name: ../x\n{PARTS}", "'../x' is no name for a template"),
        ("a tag of YAML", f"system: !!python/name:os.system\n{PARTS}", "cannot read the format"),
    ]
]
PLUGINS += [
    (
        "a plugin, half a surrogate pair",
        plugin(YIELDED, "yield Segment('a', '\\ud800', False)"),
        ON_ROWS,
        2,
        ("writes half of a surrogate pair",),
    ),
    ("a format that is not there", {}, YAML, 2, ("f.yaml: No such file",)),
    ("a format that is a folder", {"f.yaml/x": ""}, YAML, 2, ("f.yaml: Is a directory",)),
    ("a format, shown", {"f.yaml": "parts: 5"}, "templates show f.yaml", 2, ("f.yaml, line 1",)),
    ("a format, checked", {"f.yaml": "parts: 5"}, "templates check f.yaml", 2, ("got `int`",)),
    (
        "a format in formats/",
        {"formats/f.yaml": "parts: 5"},
        "run --dry-run -d rows.jsonl -t f",
        2,
        ("no template is called 'f'", "not loaded: f (", "/formats/f.yaml): ", "got `int`"),
    ),
    (
        "a format that is not in formats/",
        {"f.yaml": f"name: mine\n{PARTS}"},
        "run --dry-run -d rows.jsonl -t mine",
        2,
        ("no template is called 'mine'", "if it is in f.yaml, add --template f.yaml"),
    ),
    ("no such plugin", {}, "plugins --plugin none.py", 2, ("where: --plugin none.py",)),
    ("a plugin that is a folder", {"p/a.py": ""}, "plugins --plugin p", 2, ("--plugin p",)),
    ("a plugin that is no .py", {"a.txt": ""}, "plugins --plugin a.txt", 2, ("--plugin a.txt",)),
    (
        "a plugin that lies beside a config",
        {"plugins/mine.py": COMPUTED + "open('ran', 'w')\n", "run.yaml": "template: mine\n"},
        "run --dry-run -c run.yaml",
        2,
        ("not loaded: plugins/mine.py", "add --plugin plugins/mine.py"),
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

DATA: list[Case] = [
    (f"data: {name}", {file: content}, f"{command} {file}", 2, (file, *holds))
    for command in ("data --model model",)
    for name, file, content, *holds in [
        ("an empty file", "e.jsonl", "", "there are no rows"),
        ("blank lines", "e.jsonl", "\n\n \n", "there are no rows"),
        ("no JSON", "e.jsonl", "hello\n", "no row can be used", "row 1: is not JSON"),
        ("half a line", "e.jsonl", jsonl(good()) + '{"instruction": ', "row 2: is not JSON"),
        ("a list for a row", "e.jsonl", jsonl(good(), [1]), "row 2: is a list, not an object"),
        ("a number for a row", "e.jsonl", jsonl(good(), 3), "row 2: is a number"),
        ("null for a row", "e.jsonl", jsonl(good(), None), "row 2: is null"),
        ("a key twice", "e.jsonl", jsonl(good(), '{"output": "a", "output": "b"}'), "twice"),
        ("a key twice, inside", "e.jsonl", jsonl(good(), '{"a": {"b": 1, "b": 2}}'), "twice"),
        ("a NUL", "e.jsonl", jsonl(good(), good(output="a\0b")), "row 2, output: holds a NUL"),
        ("a NUL elsewhere", "e.jsonl", jsonl(good(), good(note="a\0")), "row 2, note: holds a NUL"),
        ("half a surrogate pair", "e.jsonl", jsonl(good(), good(output="\ud800")), "surrogate"),
        (
            "that elsewhere",
            "e.jsonl",
            jsonl(good(), good(note="\ud800")),
            "row 2, note: holds half",
        ),
        ("that in a name", "e.jsonl", jsonl(good(), {**good(), "\ud800": "x"}), "row 2: the name"),
        (
            "the end of text",
            "e.jsonl",
            jsonl(good(), good(output="<|endoftext|>")),
            "row 2, output",
        ),
        ("it in all rows", "e.jsonl", jsonl(good(output="<|endoftext|>")), "no row can be used"),
        ("a tag", "e.jsonl", jsonl(good(), good(input="<|response|>yes")), "row 2, input", "tag"),
        ("an empty output", "e.jsonl", jsonl(good(), good(output=" ")), "row 2, output: is empty"),
        (
            "no output",
            "e.jsonl",
            jsonl({"instruction": "a", "reasoning": "b"}),
            "no column 'output'",
        ),
        ("a number as text", "e.jsonl", jsonl(good(), good(output=3)), "output: is a number"),
        ("10,000 brackets", "e.jsonl", jsonl(good(), "[" * 10000), "row 2: is not JSON"),
        ("no UTF-8", "e.jsonl", b'{"instruction": "\xff"}\n', "row 1: is not UTF-8"),
        ("UTF-16", "e.jsonl", jsonl(good()).encode("utf-16"), "is UTF-16", "as UTF-8"),
        ("JSON: a lone object", "e.json", '{"a": 1}', "there is no list of rows"),
        ("JSON: cut", "e.json", "[{", "the file is not JSON"),
        ("a row of 17 MB", "e.jsonl", jsonl(good(output="x" * 17 * 2**20)), "more than 16 MB"),
        ("NULs", "e.jsonl", bytes(2**10), "is binary"),
        ("1,001 columns", "e.csv", ",".join(map(str, range(1001))) + "\n", "1001 columns"),
        (
            "messages apart",
            "e.jsonl",
            jsonl({"prompt": ASKED, "completion": TOLD}),
            "prompt and completion hold lists of messages",
            "as one list, in a column 'messages'",
        ),
        ("JSON: no UTF-8", "e.json", b"[\xff]", "not UTF-8"),
        ("JSON: a key twice", "e.json", '[{"output": "a", "output": "b"}]', "twice"),
        ("JSON: a number of 5,000 digits", "e.json", f"[{'9' * 5000}]", "not JSON"),
        ("CSV: a column twice", "e.csv", "instruction,instruction\na,b\n", "names a column twice"),
        ("CSV: only a header", "e.csv", "instruction,output\n", "there are no rows"),
        ("CSV: a cell too many", "e.csv", "instruction,output\na,b\na,b,c\n", "row 3: has 3 cells"),
        ("CSV: an open quote", "e.csv", 'instruction,output\na,b\n"a,b\n', "row 3: is not CSV"),
        ("CSV: a NUL", "e.csv", "instruction,output\na,b\na,\0\n", "row 3"),
        ("Parquet: a text", "e.parquet", "hello", "the file is not Parquet"),
        ("Parquet: empty", "e.parquet", b"", "the file is not Parquet"),
        ("Parquet: its mark alone", "e.parquet", b"PAR1PAR1", "the file is not Parquet"),
        ("no format known", "e.xlsx", "hello", "cannot tell the format"),
        ("no ending", "rows", "hello", "cannot tell the format"),
        ("a folder of anything", "folder/x.txt", "hello", "cannot tell the format"),
    ]
] + [
    ("data: a word that datasets knows", {}, "data json", 2, ("no such file", "owner/name")),
    ("data: an empty name", {}, "data ''", 2, ("where: FILE ''", "not empty")),
    ("data: no such file", {}, "data none.jsonl", 2, ("no such file", "none.jsonl")),
    ("data: nearly a file", {}, "data row.jsonl", 2, ("did you mean rows.jsonl",)),
    ("data: no such folder", {}, "data none/rows.jsonl", 2, ("there is no folder none",)),
    ("data: a folder of text", {"folder/x.txt": ""}, "data folder", 2, ("holds no data set",)),
    ("data: a pipe", {"pipe.jsonl": os.mkfifo}, "data pipe.jsonl", 2, ("a pipe or a device",)),
    ("data: a device", {}, "data /dev/zero", 2, ("a pipe or a device",)),
    ("data: stdin", {}, "data -", 2, ("write them to a file first",)),
    ("data: a name of 5,000 letters", {}, f"data {'x' * 5000}.jsonl", 2, ("too long",)),
    ("data: only the Hub", {}, "data owner/none", 2, ("'owner/none' is no file here",)),
    ("data: no column to map", {}, "data rows.jsonl --map output=out", 2, ("no column 'out'",)),
    ("data: a map of nothing", {}, "data rows.jsonl --map output", 2, ("write OURS=THEIRS",)),
    (
        "data: mapped twice",
        {},
        "data rows.jsonl --map output=input --map output=output",
        2,
        ("mapped twice",),
    ),
    (
        "data: mapped away",
        {},
        "data rows.jsonl --map instruction=output",
        2,
        ("no column 'output' is left: it is mapped to 'instruction'",),
    ),
    ("data: --max-length -5", {}, "data rows.jsonl --max-length -5", 2, ("--max-length -5",)),
    ("data: --max-length 1e9", {}, f"data rows.jsonl --max-length {10**12}", 2, ("--max-length",)),
    ("data: --eval-fraction 1", {}, "data rows.jsonl --eval-fraction 1", 2, ("eval-fraction 1",)),
    ("data: --eval-fraction nan", {}, "data rows.jsonl --eval-fraction nan", 2, ("below 1",)),
    ("data: no such template", {}, "data rows.jsonl --template alpca", 2, ("mean 'alpaca'",)),
    ("data: no such model", {}, "data rows.jsonl --model ./none", 2, ("./none", "does not exist")),
    ("data: no name of a model", {}, "data rows.jsonl --model ''", 2, ("--model", "not empty")),
    ("data: a model that is a file", {}, "data rows.jsonl --model rows.jsonl", 2, ("rows.jsonl",)),
    ("data: a model elsewhere", {}, "data rows.jsonl --model owner/none", 2, ("owner/none",)),
    ("data: a folder, no model", {"m/x": ""}, "data rows.jsonl --model m", 2, ("no config.json",)),
    (
        "run refuses the end of text as data does",
        {"e.jsonl": jsonl(good(), good(output="<|endoftext|>"))},
        "run -d e.jsonl -m model --dry-run data.eval_fraction=0",
        2,
        ("1 of 2 training rows hold the text <|endoftext|>",),
    ),
    (
        "run refuses a key twice as data does",
        {"e.jsonl": jsonl(good(), '{"output": "a", "output": "b"}')},
        "run -d e.jsonl -m model --dry-run",
        2,
        ("row 2: is not JSON", "twice"),
    ),
    (
        "run refuses a NUL as data does",
        {"e.jsonl": jsonl(good(), good(output="a\0b"))},
        "run -d e.jsonl -m model --dry-run",
        2,
        ("row 2, output: holds a NUL",),
    ),
    ("run: no such model", {}, "run -d rows.jsonl -m ./none", 2, ("./none", "check the path")),
    ("run: no such rows", {}, "run -d none.jsonl", 2, ("none.jsonl",)),
    ("run: resume of nothing", {}, "run --resume none", 2, ("there is no run 'none'",)),
    ("run: resume of what is done", {}, "run --resume old", 2, ("run 'old' is done",)),
]

PREVIEW: list[Case] = [
    (f"preview {words}", {}, f"preview -t alpaca --data rows.jsonl {words}", 2, tuple(holds))
    for words, *holds in [
        ("--rows -1", "--rows -1"),
        ("--rows 0", "--rows 0"),
        ("--row 0", "--row 0"),
        ("--row 21 --model model", "give a row from 1 to 20"),
        ("--max-length -5", "--max-length -5"),
        ("--html rows.jsonl", "the file exists", "--force"),
        ("--html .", "--html ."),
        ("--html rows.jsonl/x.html", "rows.jsonl is not a folder"),
        ("--html x.html --json", "exclude each other"),
        ("--data ''", "where: --data", "not empty"),
        ("-t none", "no template is called 'none'"),
        ("--model ./none", "./none"),
        ("--map instruction", "write OURS=THEIRS"),
    ]
]

ANSWERS: list[Case] = [
    (f"{words}"[:70], {}, words, 2, tuple(holds))
    for words, *holds in [
        ("generate old", "Missing argument 'instruction'"),
        ("generate old --file rows.jsonl", "use: fasttune answer old rows.jsonl"),
        ("generate old --score --file=rows.jsonl", "use: fasttune answer old --score rows.jsonl"),
        ("generate none x", "there is no run 'none'"),
        ("generate ./none x", "there is no run './none'", "a model's, one with a config.json"),
        ("generate '' x", "there is no run ''"),
        ("generate owner/none x", "owner/none"),
        ("generate model x -t none", "no template is called 'none'"),
        ("generate old x -t alpaca", "trained with the template 'reasoning'"),
        ("generate model x --temperature inf", "where: --temperature inf"),
        ("generate model x --temperature nan", "where: --temperature nan"),
        ("generate model x --temperature -1", "from 0 to 100"),
        ("generate model x --top-p 0", "where: --top-p 0"),
        ("generate model x --top-p 1.5", "above 0 to 1"),
        ("generate model x --top-k -1", "where: --top-k -1"),
        ("generate model x --repetition-penalty 0", "where: --repetition-penalty"),
        ("generate model x --repetition-penalty inf", "where: --repetition-penalty"),
        ("generate model x --max-new-tokens 0", "where: --max-new-tokens 0"),
        ("generate model x --max-new-tokens 99999999999", "where: --max-new-tokens"),
        ("generate model x --seed -1", "where: --seed -1"),
        ("generate model x --seed 4294967296", "where: --seed"),
        ("answer model rows.jsonl --batch-size 0", "--batch-size 0"),
        ("generate model x --samples 5", "--samples needs a --temperature above 0"),
        ("generate model x --temperature 1 --vote", "--vote needs --samples"),
        ("generate model x --samples 0 --temperature 1", "--samples 0"),
        ("generate model x -o answers.jsonl", "No such option: -o"),
        ("answer model rows.jsonl -o rows.jsonl", "would replace the rows"),
        ("answer model rows.jsonl -o ./rows.jsonl --force", "would replace the rows"),
        ("answer model rows.jsonl -o model/config.json", "the file exists", "--force"),
        ("answer model rows.jsonl -o model --force", "no file that could be replaced"),
        ("answer model rows.jsonl -o /dev/null --force", "no file that could be"),
        ("answer model rows.jsonl -o ''", "where: -o"),
        ("answer model none.jsonl", "none.jsonl"),
        ("answer model model", "holds no data set"),
        ("answer model rows.jsonl --map instruction=none", "no column 'none'"),
        ("answer model", "holds no rows out", "give a file of rows"),
        ("answer model rows.jsonl --score --samples 5 --temperature 1", "add --vote"),
        ("generate model ''", "instruction: is empty"),
        ("generate model 'say <|response|> now'", "instruction: contains", "tag <|response|>"),
        ("generate model hello --input '<|reasoning|>x'", "input: contains", "tag <|reasoning|>"),
        ("generate model '### Response:' -t alpaca", "instruction: contains"),
        ("chat none", "there is no run 'none'"),
        ("chat model --temperature inf", "where: --temperature inf"),
        ("chat model --seed -1", "where: --seed -1"),
        ("chat model -t none", "no template is called 'none'"),
    ]
] + [
    (
        "answer: a row that forges a section",
        {"e.jsonl": jsonl(good(), good(instruction="<|response|>"))},
        "answer model e.jsonl",
        2,
        ("row 2, instruction: contains the template's tag",),
    ),
]

OTHERS: list[Case] = [
    (f"{words}"[:70], {}, words, 2, tuple(holds))
    for words, *holds in [
        ("runs show none", "there is no run 'none'"),
        ("runs show ''", "there is no run ''"),
        ("runs show none -o none", "where: none"),
        ("export none", "there is no run 'none'"),
        ("export old --to none", "no exporter is called 'none'"),
        ("export old --to merged --quant q8_0", "takes no --quant"),
        ("export old --into nowhere", "original"),
        ("export old --option quant", "write --option NAME=VALUE"),
        ("export old --option a=b", "takes no --a"),
        ("export old --rows -1", "--rows -1"),
        ("export old --rows 0", "--rows 0"),
        ("export old -o rows.jsonl", "the target is not a folder"),
        ("export old -o runs", "is not an export"),
        ("export old -o runs --force", "is not an export"),
        ("export old -o . --force", "is or contains the current folder"),
        ("export old -o .. --force", "is or contains the current folder"),
        ("export old -o '' --force", "an empty name is no path"),
        ("compare", "give --templates or runs"),
        ("compare --templates ''", "where: --templates"),
        ("compare --templates ,", "where: --templates"),
        ("compare --templates alpaca,alpaca", "--templates"),
        ("compare --templates alpaca,none", "no template is called 'none'"),
        ("compare old --templates alpaca", "give --templates or runs"),
        ("compare old --seeds 1", "finished runs keep their settings"),
        ("compare none", "there is no run 'none'"),
        ("compare --templates alpaca --seeds -1", "where: --seeds -1"),
        ("compare --templates alpaca --seeds 4294967296", "where: --seeds"),
        ("compare --templates alpaca --seeds one", "where: --seeds one"),
        ("compare --templates alpaca --seeds ''", "where: --seeds"),
        ("compare --templates alpaca --seeds 1,1 -d rows.jsonl", "--seeds"),
        ("compare --templates alpaca --rows -1", "--rows -1"),
        ("compare --templates alpaca --max-new-tokens 0", "--max-new-tokens 0"),
        ("compare --templates alpaca --batch-size 99999999999", "--batch-size"),
        ("bench --arms plian", "did you mean 'plain'"),
        ("bench --arms ''", "where: --arms"),
        ("bench --rows 0", "--rows 0"),
        ("bench --block -1", "--block -1"),
        ("bench -d none.jsonl", "none.jsonl"),
        ("plan --gpu none", "no GPU is called 'none'"),
        ("plan --gpu ''", "no GPU is called ''"),
        ("plan --gpu=-5GB", "no GPU is called '-5GB'"),
        ("plan --gpu 0GB", "no GPU is called '0GB'"),
        ("plan --gpu nanGB", "no GPU is called 'nanGB'"),
        ("plan --gpu t4 -m ./none", "./none"),
        ("plan --gpu t4 -t none", "no template is called 'none'"),
        ("plan --gpu t4 -t ''", "where: --template"),
        ("plan --gpu t4 -d ''", "where: --data"),
        ("plan --gpu t4 train.batch_size=100000", "the run needs"),
        ("templates show none", "no template is called 'none'"),
        ("templates show ''", "no template is called ''"),
        ("templates check none", "no template is called 'none'"),
        ("templates check none.py", "no such plugin file"),
        ("templates check alpaca --data none.jsonl --model model", "none.jsonl"),
        ("templates check alpaca --model ./none", "./none"),
        ("templates check alpaca --map instruction=input", "give --data, too"),
        ("templates check alpaca --data rows.jsonl --model model --map output=x", "no column 'x'"),
        ("templates new ../../x", "is no name for a template"),
        ("templates new ''", "is no name for a template"),
        ("templates new .hidden", "is no name for a template"),
        ("templates new a-", "do not end with - or _"),
        ("templates new a- --package", "do not end with - or _"),
        (f"templates new {'a' * 63}", "use at most 62"),
        (f"templates new --package {'a' * 100}", "use at most 62"),
        ("templates new alpaca", "the name 'alpaca' is taken"),
        ("templates new a -o rows.jsonl", "rows.jsonl"),
        ("templates list --plugins-dir", "--plugins-dir"),
        ("templates list --plugins-dir rows.jsonl", "--plugins-dir: rows.jsonl"),
    ]
] + [
    (
        "templates new: it exists",
        {"plugins/mine.py": ""},
        "templates new mine",
        2,
        ("mine.py", "--force"),
    ),
    (
        "plan: config.json is cut",
        {"m/config.json": "{"},
        "plan -m m --gpu t4",
        2,
        ("m/config.json",),
    ),
    (
        "plan: config.json is a list",
        {"m/config.json": "[]"},
        "plan -m m --gpu t4",
        2,
        ("m/config",),
    ),
    ("plan: config.json is empty", {"m/config.json": "{}"}, "plan -m m --gpu t4", 2, ("where: m",)),
    (
        "plan: nonsense in config.json",
        {"m/config.json": '{"model_type": "phi", "hidden_size": "x"}'},
        "plan -m m --gpu t4",
        2,
        ("where: m",),
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

    train = start.train

    def trains(job, *arguments, **named):
        assert isinstance(job, Run), "a model is to be trained"
        return train(job, *arguments, **named)  # refused by what the run holds

    monkeypatch.setattr("fasttune.start.train", trains)

    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield tmp_path
    faulthandler.cancel_dump_traceback_later()


def lay(ground: Path, files: Files, command: str, request: pytest.FixtureRequest) -> None:
    """Write what a case needs."""
    write_rows(ground / "rows.jsonl", rows(20))
    words = shlex.split(command)
    if {"model", "model/config.json"} & {*words}:
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


TABLE = [
    *MISUSE, *SETTINGS, *CONFIGS, *RUNS, *CHECKPOINTS, *ADAPTERS, *MODELS, *PLUGINS, *DATA,
    *PREVIEW, *ANSWERS, *OTHERS,
]  # fmt: skip


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
