"""Text from outside reaches the terminal visibly: control characters as marks, markup as text.

A row of DOORS is (name, files, command): what EVIL comes in through, by a file's text or name or in
the command. The folder has rows.jsonl and, where the command names it, runs/old.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from fasttune.plugins.metric import Answer
from fasttune.source import Source
from fasttune.terminal import CONTROLS, echo
from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow

EVIL = "\x1b]52;c;QUJD\x07\x1b[2J\x9b31m\x7f\x85\u202e\r[bold]x[/nope]"
SHOWN = ("⟨U+001B⟩", "\\u001b", "\\x1b", "\\e")
"""How a mark, JSON, Python's repr and YAML write ESC."""
NAME = EVIL.replace("/", "")
ROW = rows(1)[0]


def lines(*written: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in written)


def plugin(body: str) -> dict[str, str]:
    return {"p.py": f"from fasttune import *\nEVIL = {EVIL!r}\n@hookimpl\n{body}\n"}


TEMPLATE = plugin(
    "def register_templates():\n"
    "    parts = [given('a', '{instruction}' + EVIL + ' '), learn('b', '{output}')]\n"
    "    return [Template(name='evil', description=EVIL, system=EVIL, parts=parts)]"
)
RUN = Path(__file__).parents[1] / "old_run"
SCORES = {EVIL: 1.0}
MANIFEST = {
    "runs/old/manifest.json": json.dumps(
        json.loads((RUN / "manifest.json").read_text())
        | {"device": EVIL, "scores": {"before": SCORES, "after": SCORES}}
    )
}
DOORS = [
    ("a row", {"r.jsonl": lines({**ROW, "instruction": EVIL})}, "preview -t alpaca -d r.jsonl"),
    ("a row, JSON", {"r.jsonl": lines({**ROW, "output": EVIL})}, "preview -d r.jsonl --json"),
    ("a first row", {"r.jsonl": lines({**ROW, "output": EVIL})}, "run --dry-run -d r.jsonl"),
    ("a column", {"r.jsonl": lines({EVIL: "a", "output": "b"})}, "data r.jsonl"),
    ("a role", {"r.jsonl": lines({"messages": [{"role": EVIL, "content": "a"}]})}, "data r.jsonl"),
    ("a file", {f"{NAME}.jsonl": lines(ROW)}, f"data {shlex.quote(NAME)}.jsonl"),
    ("a file, JSON", {f"{NAME}.jsonl": lines(ROW)}, f"data {shlex.quote(NAME)}.jsonl --json"),
    ("no file", {}, f"data {shlex.quote(NAME)}.jsonl"),
    ("a key", {"c.yaml": json.dumps({EVIL: 1})}, "run -c c.yaml"),
    ("a setting", {}, f"config {shlex.quote(f'system={json.dumps(EVIL)}')}"),
    ("a setting, JSON", {}, f"config --json {shlex.quote(f'system={json.dumps(EVIL)}')}"),
    ("a wrong setting", {}, f"config {shlex.quote(f'seed={json.dumps(EVIL)}')}"),
    ("a mapping", {}, f"data rows.jsonl --map {shlex.quote('input=' + EVIL)}"),
    ("a command", {}, shlex.quote(EVIL)),
    ("an option", {}, f"data {shlex.quote('--' + EVIL)}"),
    ("a run's name", {}, f"runs show {shlex.quote(EVIL)}"),
    ("a run's manifest and metric", MANIFEST, "runs show old"),
    ("a run's manifest, JSON", MANIFEST, "runs show old --json"),
    ("runs", {f"runs/{NAME}/manifest.json": "{}"}, "runs list"),
    ("a template", TEMPLATE, "templates list --plugin p.py"),
    ("a template's text", TEMPLATE, "templates show evil --plugin p.py"),
    ("a template, JSON", TEMPLATE, "templates show evil --plugin p.py --json"),
    ("a plugin's error", plugin("def register_templates(): raise OSError(EVIL)"),
     "plugins --plugin p.py"),
    ("an exporter", plugin("def register_exporters(): raise OSError(EVIL)"),
     "export --list --plugin p.py"),
    ("an export's option", {}, f"export old --option {shlex.quote(EVIL)}"),
    ("an answer", {}, "generate model q -t alpaca"),
    ("an answer alone", {}, "generate model q -t alpaca --raw"),
    ("an answer, JSON", {}, "generate model q -t alpaca --json"),
    ("a voted answer", {}, "generate model q -t alpaca --samples 2 --vote --temperature 1"),
    ("answers", {}, "answer model rows.jsonl -t alpaca"),
    ("a chat", {}, "chat model -t alpaca"),
]  # fmt: skip


class Evil:
    """A generator whose answers are EVIL."""

    def answer(self, row):
        return Answer(row, EVIL, {"response": EVIL}, "eos", 1)

    def stream(self, row, sampling, show):
        for piece in EVIL:
            show(piece)
        return self.answer(row)

    def answers(self, rows, *arguments):
        return map(self.answer, rows)

    def prompt(self, row):
        return EVIL


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door[0])
def test_control_characters_are_shown(door, tmp_path, monkeypatch):
    _, files, command = door
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Source, "load", lambda source: Evil())
    monkeypatch.setattr("sys.stdin", io.StringIO("a question\n"))
    monkeypatch.setattr("sys.stdout", sys.stdout)
    write_rows(tmp_path / "rows.jsonl", rows(3))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "phi"}')
    if "old" in command or "runs/old/manifest.json" in files:
        shutil.copytree(RUN, tmp_path / "runs" / "old")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    ended = cli(*shlex.split(command))
    printed = ended.out + ended.err
    raw = "--raw" in command
    assert raw or not CONTROLS.search(printed), ascii(printed)
    assert raw or any(mark in printed for mark in SHOWN), printed
    assert not raw or EVIL in ended.out


def test_an_answer_alone_is_shown_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for file, printed in ((io.StringIO(), "\x9bé\n"), (Terminal(), "⟨U+009B⟩é\n")):
        echo("\x9bé", file=file, raw=True)
        assert file.getvalue() == printed


@pytest.mark.parametrize("evil", [EVIL, "[/red]", "[bold", ":bomb:", "é\u200d日本"])
def test_a_console_shows_strings_as_they_are(evil, monkeypatch):
    from rich.text import Text

    from fasttune.cli.app import facts, table
    from fasttune.terminal import console, visible

    monkeypatch.setattr("sys.stdout", io.StringIO())
    out = console()
    out.print(evil)
    out.print(table((evil,), [(evil,), (Text(evil),)]))
    out.print(facts({evil: evil}))
    printed = sys.stdout.getvalue()
    assert printed.count(visible(evil)) >= 4 and not CONTROLS.search(printed)
