"""The root of the command line: quick starts, errors without tracebacks, help in the docs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fasttune.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "unsloth", "trl", "peft", "datasets", "matplotlib", "numpy")


def modules_after(*arguments: str) -> set[str]:
    """The modules that a fresh process has imported when a command is done."""
    code = (
        "import sys, json\n"
        "from fasttune.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["templates", "list"],
        ["plugins"],
        ["run", "--help"],
        ["bench", "--help"],
        ["preview", "--help"],
        ["generate", "--help"],
        ["answer", "--help"],
        ["chat", "--help"],
        ["runs", "list"],
        ["plan", "--gpu", "t4"],
    ],
    ids=" ".join,
)
def test_a_command_that_computes_nothing_imports_nothing_heavy(arguments):
    assert modules_after(*arguments).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [["data"], ["preview", "-t", "alpaca"], ["templates", "check", "alpaca"]],
    ids=" ".join,
)
def test_no_torch_before_tokens_are_counted(arguments):
    code = (
        "import sys\n"
        "import fasttune.models.tokenizer as tokenizer\n"
        "from fasttune.cli import main\n"
        "def stop(name, end=''):\n"
        "    print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])\n"
        "    raise SystemExit\n"
        "tokenizer.load_tokenizer = stop\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--template", "reasonin"], "did you mean 'reasoning'"),
        (["run", "--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["run", "train.epoch=2"], "there is no setting 'train.epoch'"),
        (["run", "--config", "none.yaml"], "none.yaml"),
        (["run", "train.report_to=tensorbord"], "did you mean 'tensorboard'"),
        (["run", "--resume", "none"], "there is no run 'none'"),
        (["run", "--resume", "none", "--config", "c"], "a resumed run keeps its settings"),
        (["bench", "--arms", "plian"], "did you mean 'plain'"),
        (["generate", "none", "Hello"], "there is no run 'none'"),
        (["generate", "last"], "Missing argument 'instruction'"),
        (["generate", "last", "--file", "a b.jsonl"], "fasttune answer last 'a b.jsonl'"),
        (["generate", "last", "--file=x.jsonl", "-o", "y"], "fasttune answer last x.jsonl -o y"),
        (["generate", "last", "x", "--via", "pipeline"], "No such option: --via"),
        (["runs", "show", "none"], "there is no run 'none'"),
        (["rum"], "No such command 'rum'"),
        (["run", "--templat", "x"], "--templat"),
        (["--plugins-dir", "no-such-dir", "plugins"], "no such plugins folder"),
        (["plugins", "--plugins-dir=no-such-dir"], "no such plugins folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_error_and_exit_status_2(
    arguments, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert expected in error and error.startswith("error: ") and "Traceback" not in error
    assert not list(tmp_path.iterdir())  # nothing is half written


def test_traceback_is_there_on_demand(tmp_path, monkeypatch):
    from fasttune.errors import FasttuneError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FasttuneError):
        main(["runs", "show", "none", "--traceback"])


def test_the_help_in_the_docs_is_the_help():
    made = subprocess.run(
        [sys.executable, "-c", "from make_command_docs import command_docs; print(command_docs())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tools",
    ).stdout
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written.strip() == made.strip(), "run: make docs"


def test_links_in_the_docs_lead_somewhere():
    import re

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


LOADING = """
import sys, time
from fasttune import job
from fasttune.cli import main

def prepare(*_):
    print("loading", flush=True)
    time.sleep(60)

job.prepare = prepare
main(["run"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_stopped_while_it_loads_ends_without_a_word(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert not list(tmp_path.iterdir())
