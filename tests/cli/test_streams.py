"""Output of any kind: encodings, closed and full streams, narrow terminals, no colour."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow

FASTTUNE = (sys.executable, "-c", "from fasttune.cli import main; main()")
COMMANDS = (["templates", "show", "multilingual"], ["plan", "--gpu", "t4"], ["--help"], ["plugins"])


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell that redirects its streams."""
    words = " ".join(f"'{word}'" for word in (*FASTTUNE, *arguments))
    return subprocess.run(
        ["sh", "-c", f"{words} {line}"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        errors="replace",
    )


def test_an_ascii_stream_replaces_what_it_lacks():
    done = shell("", "templates", "show", "multilingual", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "?" in done.stdout and done.stderr == ""


def test_json_on_an_ascii_stream_loses_nothing():
    done = shell("", "templates", "show", "multilingual", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["segments"] and done.stdout.isascii()


def test_an_error_on_an_ascii_stream():
    done = shell("", "runs", "show", "日本語", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "\\u65e5" in done.stderr and "Traceback" not in done.stderr


def test_a_word_that_is_no_utf8_is_told():
    done = subprocess.run([*FASTTUNE, "run", b"system=\xff"], capture_output=True, text=True)
    assert done.returncode == 2 and "system=\\udcff" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream_stops_no_command(line):
    done = shell(line, "templates", "list")
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_stream_is_told_with_its_cause(arguments):
    done = shell("> /dev/full", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == [
        "error: cannot write to standard output",
        "  where: No space left on device",
        "  what to do: redirect it to a disk with space",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_error_stream_changes_no_status():
    assert shell("2> /dev/full", "runs", "show", "none").returncode == 2


def test_a_reader_that_leaves_is_no_error():
    done = shell("| true", "templates", "show", "multilingual")
    assert done.stderr == ""


ON_A_TERMINAL = """
import io, sys

class Terminal(io.StringIO):
    def isatty(self):
        return True

out, sys.stdout = sys.stdout, Terminal()
from fasttune.cli import main
try:
    main(sys.argv[1:])
finally:
    out.write(sys.stdout.getvalue())
"""


@pytest.mark.parametrize("columns", ["20", "24", "1"])
@pytest.mark.parametrize("arguments", [["templates", "list"], *COMMANDS], ids=" ".join)
def test_a_narrow_terminal(arguments, columns):
    """In a process of its own: what other tests import may have settled colours for good."""
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, *arguments], capture_output=True, text=True,
        env={**os.environ, "COLUMNS": columns, "NO_COLOR": "1", "TERM": "xterm-256color"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout
    assert not re.search(r"\x1b\[[34]\d", done.stdout)  # bold and italic may stay


def test_the_bars_of_lengths_have_a_width_on_any_terminal():
    from rich.console import Console

    from fasttune.cli.data import _bars
    from fasttune.inspection.survey import Bin

    for width in (1, 20, 24, 25, 120):
        out = Console(file=io.StringIO(), width=width, force_terminal=True)
        out.print(_bars(out, [Bin(0, 9, 3), Bin(10, 19, 0)]))


def test_a_file_that_cannot_be_written_is_named_without_its_temporary_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(2))
    long = "x" * 250
    ended = cli("templates", "new", "mine", "-o", long + "x" * 10)
    assert ended.status == 2 and "too long" in ended.err and ".tmp" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_disk_that_is_full_names_the_target(tmp_path, monkeypatch):
    from fasttune import files

    def full(self, *arguments, **named):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / "a.json", "{}")
    assert caught.value.filename == str(tmp_path / "a.json")
    with pytest.raises(OSError) as caught, files.atomic_folder(tmp_path / "f") as folder:
        (folder / "b.json").write_text("{}")
    assert caught.value.filename == str(tmp_path / "f" / "b.json")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_utf_8_is_an_error_of_three_lines(tmp_path, monkeypatch):
    """A folder's name as other programs leave it, and a library's file under LC_ALL=C."""
    folder = tmp_path / os.fsdecode(b"bad\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)
    ended = cli("runs", "list")
    assert ended.status == 2 and "error: a name or a text is not UTF-8" in ended.err
    assert "bad\\udcff" in ended.err and "rename the file or folder" in ended.err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fasttune.cli.runs.list_runs", lambda folder: b"\xc3".decode("ascii"))
    ended = cli("runs", "list")
    assert ended.status == 2 and "PYTHONUTF8=1" in ended.err and "Traceback" not in ended.err
