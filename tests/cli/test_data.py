from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fasttune.cli import main
from fasttune.config import load_config
from fasttune.data.load import shipped
from fasttune.job import prepare
from fasttune.plugins.discovery import load_plugins
from tests.conftest import PHI2, cli, write_rows

GOOD = {"instruction": "How many days are in two weeks?", "input": "", "output": "14 days"}


@pytest.fixture(scope="module")
def model(tmp_path_factory, phi2_tokenizer) -> str:
    """A folder that has a tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("model")
    phi2_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(PHI2))
    return str(folder)


@pytest.fixture
def run(model, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["data", *arguments, "--model", model])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_shipped_data_without_a_file(run):
    status, out, err = run()
    assert status == 0, err
    assert re.search(r"template +reasoning", out)
    assert re.search(r"languages .*\bja \d+", out)
    assert " 0 bad" in out
    assert re.search(r"split +1869 to train on, \d+ to evaluate \(from a file of their own\)", out)
    assert "#####" in out
    assert out.isascii(), "without a terminal the report is ASCII"
    assert max(map(len, out.splitlines())) <= 120


def test_bad_rows_are_shown_and_make_the_status_2(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [GOOD, {"instruction": "x", "output": 72}, GOOD])
    status, out, _ = run(source)
    assert status == 2
    assert re.search(r"rows +2 good, 1 bad, 1 with a warning", out)
    assert re.search(r"^2 +output +is a number, not text: write \"72\"", out, re.M)
    assert re.search(r"^3 +warning: repeats row 1", out, re.M)
    assert re.search(r"template +alpaca", out)
    assert re.search(r"scripts +Latin 2", out)


def test_a_warning_alone_is_no_failure(run, tmp_path):
    assert run(write(tmp_path / "a.jsonl", [GOOD, GOOD]))[0] == 0


def test_long_lists_of_problems_are_cut(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [GOOD, *({"instruction": "x"} for _ in range(30))])
    _, out, _ = run(source)
    assert out.count("is missing") == 20
    assert "and 10 more" in out
    _, out, _ = run(source, "--json")
    assert len(json.loads(out)["problems"]) == 30


def test_json_is_one_document(run, tmp_path):
    rows = [{"question": f"q{n}", "answer": "[bold]a[/bold]", "language": "en"} for n in range(40)]
    source = write(tmp_path / "a.jsonl", [*rows, 3])
    options = ("--map", "instruction=question", "--map", "output=answer", "--template", "alpaca")
    status, out, _ = run(source, "--json", *options, "--eval-fraction", "0.25")
    report = json.loads(out)
    assert status == 2
    assert report["good_rows"] == 40 and report["bad_rows"] == 1
    assert report["languages"] == {"en": 40}
    assert set(report["columns"]) == {"instruction", "output", "language"}
    assert report["train_rows"] + report["eval_rows"] == 40
    assert sum(bin["rows"] for bin in report["tokens"]["histogram"]) == 40
    assert 0 < report["tokens"]["trained_share"] < 0.5
    assert report["problems"] == [
        {
            "row": 41,
            "column": "",
            "message": "is a number, not an object",
            "fatal": True,
            "source": "",
        }
    ]


@pytest.mark.parametrize("name", ["alpaca", None])
def test_the_split_is_that_of_a_run(run, model, tmp_path, name):
    """Of a file of one's own, and of the shipped rows with their held-out file."""
    source = name and write(tmp_path / "a.jsonl", [{**GOOD, "input": f"{n}"} for n in range(400)])
    _, out, _ = run(*filter(None, [source]), "--json")
    report = json.loads(out)
    settings = {"template": report["template"], "data.train": source, "model.name": model}
    config = load_config(None, [*settings.items()])
    job = prepare(config, load_plugins())
    assert (report["train_rows"], report["eval_rows"]) == (len(job.train), len(job.eval))
    assert report["eval_source"] == ("" if source else str(shipped("heldout")))
    assert report["good_rows"] == (400 if source else len(job.train))


def test_max_length(run, tmp_path):
    source = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, "input": "word " * 200}])
    assert "1 rows of more than 100 tokens" in run(source, "--max-length", "100")[1]
    assert "0 rows of more than 1024 tokens" in run(source)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "no such file"),
        (["nobody/nothing"], "Hub"),
        (["--map", "instruction"], "maps no column"),
        (["--map", "instruction=qestion"], "no column 'qestion'"),
        (["--template", "resoning"], "no template is called 'resoning'"),
        (["--eval-fraction", "2"], "'data.eval_fraction' is 2.0"),
        (["--max-length", "0"], "max-length"),
    ],
)
def test_mistakes_are_three_lines_and_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert message in err and "\nerror: " in "\n" + err
    assert "Traceback" not in err


def test_bars_on_a_terminal(monkeypatch, run):
    from rich.console import Console

    def terminal() -> Console:
        return Console(width=80, force_terminal=True, highlight=False)

    monkeypatch.setattr("fasttune.cli.data.console", terminal)
    _, out, _ = run()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert "█" in plain and "###" not in plain
    bars = [line for line in plain.splitlines() if re.match(r" *\d+-\d+ +[1-9]", line)]
    assert bars and all(re.search(r"[▏▎▍▌▋▊▉█]", line) for line in bars)
    # the path of the source may be longer; it is folded, not cut
    assert max(map(len, plain.splitlines())) <= 80


def test_help_imports_no_torch():
    code = (
        "import sys\nfrom fasttune.cli import main\n"
        "try: main(['data', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--eval-fraction" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_row_that_holds_the_end_of_text_is_bad_for_every_command(tmp_path, phi2_tokenizer):
    phi2_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(PHI2))
    file = tmp_path / "rows.jsonl"
    ends = {"instruction": "What ends it?", "output": "The token <|endoftext|> does."}
    write_rows(file, [ends, {"instruction": "Say red", "output": "red"}])
    what = "row 1, output: holds the text <|endoftext|>"
    on = ("-t", "alpaca", "-m", tmp_path / "model", "-d", file)
    ended = cli("data", *on)
    assert ended.status == 2 and what in ended.err
    assert cli("data", *on, "data.skip_bad_rows=true").status == 0
    ended = cli("templates", "check", "alpaca", "--data", file, "--model", tmp_path / "model")
    words = " ".join(ended.out.split())  # the table is folded to the terminal's width
    assert what in words and "(1 can)" in words
    ended = cli("preview", *on)
    assert "row 2," in ended.out and "endoftext|> does" not in ended.out
    refused = cli("preview", *on, "--row", 1)
    assert refused.status == 2 and what in refused.err and "row 1 cannot be used" in refused.err


def test_one_option_may_map_several_columns(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"question": "a", "an,swer": "b"}])
    for mapping in (["--map", "instruction=question,output=an,swer"],
                    ["--map", "instruction=question", "--map", "output=an,swer"]):  # fmt: skip
        ended = cli("data", file, "-t", "alpaca", *mapping)
        assert ended.status == 0 and "1 good, 0 bad" in ended.out, ended.err
