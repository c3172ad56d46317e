"""`fasttune compare` on a tiny Phi: the same rows in the same order, resumed, measured, refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path

# isort: split
import pytest

from fasttune.comparison.compare import plan_templates
from fasttune.comparison.plan import Measuring, plan_runs
from fasttune.config import load_config
from fasttune.data.split import data_hash
from fasttune.errors import FasttuneError
from fasttune.formats.template import Template
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import Run, list_runs
from tests.conftest import cli

pytestmark = pytest.mark.slow

PLUGINS = load_plugins()


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"Add {n} and {n + 1}.",
            "reasoning": f"{n} + {n + 1} = {2 * n + 1}.",
            "output": f"{2 * n + 1}",
            "parity": "odd" if n % 2 else "even",
        }
        for n in range(count)
    ]


def write(file: Path, data: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", rows(30))


def settings(tiny_phi: Path) -> list[str]:
    return [
        "-m", str(tiny_phi), "model.quantization=none", "model.precision=fp32",
        "data.eval_fraction=0.4", "train.batch_size=2", "train.max_steps=4", "train.warmup_steps=1",
        "train.learning_rate=1e-2",
    ]  # fmt: skip


def plan(tiny_phi, data, *overrides, templates=("alpaca", "reasoning"), **more):
    values = [
        ("model.name", str(tiny_phi)), ("data.train", str(data)), ("data.eval_fraction", 0.2),
        *overrides,
    ]  # fmt: skip
    given = {"seeds": (1,), "budget": "steps", "measuring": Measuring(), "plugins": PLUGINS}
    return plan_templates(load_config(None, values), templates, **{**given, **more})


# What will be trained


def test_every_format_gets_the_same_rows_in_the_same_order(tiny_phi, data):
    alpaca, reasoning = plan(tiny_phi, data, ("train.epochs", 1)).formats
    assert alpaca.job.train == reasoning.job.train
    assert alpaca.job.eval == reasoning.job.eval
    row = alpaca.job.train[0]  # each renders it
    assert reasoning.job.template.render(row).endswith(
        f"<|reasoning|>{row['reasoning']}\n<|response|>{row['output']}"
    )
    assert alpaca.job.template.render(row).endswith(f"### Response:\n{row['output']}")
    assert alpaca.job.config.train.max_steps == reasoning.job.config.train.max_steps == 6


def test_a_row_that_one_format_cannot_use_is_left_out_of_all(tiny_phi, tmp_path):
    good = rows(30)
    long = {**good[0], "instruction": "Once more.", "reasoning": "counting on, " * 200}
    file = write(tmp_path / "rows.jsonl", [*good, long])
    found = plan(tiny_phi, file, ("model.max_length", 256))
    for each in found.formats:
        assert len(each.job.train) + len(each.job.eval) == 30
        assert long not in [*each.job.train, *each.job.eval]
    assert any("1 rows cannot be used in every format" in note for note in found.notes)


def test_tokens_are_counted_as_they_are_trained(tiny_phi, tmp_path):
    """Reasoning that is cut off makes no long format."""
    data = [{**row, "reasoning": "on and on, " * 300} for row in rows(30)]
    file = write(tmp_path / "rows.jsonl", data)
    settings = ("model.max_length", 64), ("train.max_steps", 100), ("data.overlong", "truncate")
    taken = {
        each.label: each.job.config.train.max_steps
        for each in plan(tiny_phi, file, *settings, budget="tokens").formats
    }
    assert taken["reasoning"] == 100 and 100 < taken["alpaca"] < 200
    with pytest.raises(FasttuneError, match="a row has"):
        plan(tiny_phi, file, *settings[:2], ("data.overlong", "error"))


def test_a_row_without_reasoning_is_left_out_of_all(tiny_phi, tmp_path):
    bad = {"instruction": "Say hello.", "reasoning": "", "output": "hello"}
    file = write(tmp_path / "rows.jsonl", [*rows(30), bad])
    with pytest.raises(FasttuneError, match="1 of 31 rows cannot be used"):
        plan(tiny_phi, file)
    found = plan(tiny_phi, file, ("data.skip_bad_rows", True))
    assert all(len(f.job.train) + len(f.job.eval) == 30 for f in found.formats)


def test_a_budget_of_tokens_gives_short_formats_more_steps(tiny_phi, data, small_tokenizer):
    from fasttune.encoding.encode import encode

    found = plan(tiny_phi, data, ("train.max_steps", 100), budget="tokens")
    taken = {}
    for each in found.formats:
        template, train = each.job.template, each.job.train
        tokens = sum(len(encode(template, row, small_tokenizer)) for row in train)
        taken[each.label] = each.job.config.train.max_steps * tokens
    assert {f.job.config.train.max_steps for f in found.formats} > {100}
    assert taken["alpaca"] == pytest.approx(taken["reasoning"], rel=0.01)


def test_a_sweep_trains_a_format_with_each_value(tiny_phi, data):
    sweep = ("train.batch_size", ["2", "4"])
    found = plan(tiny_phi, data, ("train.epochs", 1), templates=("alpaca",), sweep=sweep)
    assert [each.label for each in found.formats] == [
        "alpaca, batch_size 2",
        "alpaca, batch_size 4",
    ]
    assert [each.base for each in found.formats] == ["alpaca, batch_size 2"] * 2
    small, large = (each.job for each in found.formats)
    assert (small.config.train.batch_size, small.config.train.max_steps) == (2, 12)
    assert (large.config.train.batch_size, large.config.train.max_steps) == (4, 6)
    assert small.train == large.train and small.eval == large.eval
    assert "alpaca, batch_size 4: 6 steps of 4 rows" in found.about["budget"]
    assert found.folder.name.startswith("alpaca-batch_size-2-alpaca-batch_size-4-")
    both = plan(tiny_phi, data, templates=("alpaca",), sweep=sweep, without="eos").formats
    assert {each.base for each in both} == {"alpaca, batch_size 2"} and len(both) == 4
    for key, values, said in (
        ("model.max_length", ["64"], "cannot be swept"),
        ("train.learning_rate", ["1e-4", "1e-4"], "given twice"),
        ("train.learning_rate", ["0.0001", "3e-4", "1e-4"], "'0.0001' is given twice"),
        ("train.learning_rate", [1e-4, "0.00010"], "given twice"),
        ("train.learning_rate", ["fast"], "is 'fast'"),
        ("train.rate", ["1"], "no setting 'train.rate'"),
    ):
        with pytest.raises(FasttuneError, match=said):
            plan(tiny_phi, data, templates=("alpaca",), sweep=(key, values))


def test_without_eos_every_format_is_there_a_second_time(tiny_phi, data):
    found = plan(tiny_phi, data, templates=("alpaca",), without="eos").formats
    assert [each.label for each in found] == ["alpaca", "alpaca without EOS"]
    assert [each.base for each in found] == ["alpaca", "alpaca"]
    learned, not_learned = (each.job.config.train for each in found)
    assert learned.learn_eos and not not_learned.learn_eos
    assert replace(not_learned, learn_eos=True) == learned
    assert found[0].job.train == found[1].job.train


def test_seeds_of_the_training_hold_out_the_same_rows(tiny_phi, data):
    one, other = (plan(tiny_phi, data, ("seed", seed)) for seed in (1, 2))
    assert one.formats[0].job.eval == other.formats[0].job.eval


def test_the_folder_is_named_after_what_decides_the_result(tiny_phi, data):
    first = plan(tiny_phi, data).folder
    assert first == plan(tiny_phi, data).folder and first.parent == Path("comparisons")
    assert first.name.startswith("alpaca-reasoning-")
    assert first != plan(tiny_phi, data, ("lora.r", 8)).folder
    assert first != plan(tiny_phi, data, measuring=Measuring(rows=3)).folder
    assert first != plan(tiny_phi, data, seeds=(2,)).folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ("alpaca",)}, "nothing to compare with"),
        ({"templates": ("alpaca", "alpaca")}, "'alpaca' is given twice"),
        ({"templates": ("alpaca", "reasonin")}, "no template is called 'reasonin'"),
        ({"seeds": (1, 1)}, "'1' is given twice"),
    ],
)
def test_what_cannot_be_compared(tiny_phi, data, change, message):
    with pytest.raises(FasttuneError, match=message):
        plan(tiny_phi, data, **change)


def test_no_format_may_stop_early(tiny_phi, data):
    with pytest.raises(FasttuneError, match="none may stop early"):
        plan(tiny_phi, data, ("train.early_stopping", 2))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--templates", "alpaca,reasoning", "last"],
        ["last", "--seeds", "1"],
        ["--templates", "alpaca,reasoning", "--seeds", "one"],
        ["--templates", "alpaca,reasoning", "--seeds", "1,5000000000"],
        ["--templates", "alpaca,reasoning", "--budget", "rows"],
        ["--templates", "alpaca,reasoning", "train.epoch=1"],
    ],
)
def test_bad_input_is_one_error(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("compare", *words).status == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


# The whole of it


@pytest.fixture(scope="module")
def compared(tiny_phi, data, tmp_path_factory) -> tuple[Path, list[str]]:
    """Two formats with two seeds; interrupted in the third training, then gone on with."""
    from fasttune.encoding.batches import Collator

    folder = tmp_path_factory.mktemp("comparison") / "here"
    command = [
        "compare", "--templates", "alpaca,reasoning", "-d", str(data), "--seeds", "1,2",
        "--max-new-tokens", "8", "--rows", "8", "-o", str(folder), *settings(tiny_phi),
    ]  # fmt: skip
    batches: list[list[list[int]]] = []
    collate = Collator.__call__
    patch = pytest.MonkeyPatch()

    def noting(self, examples):
        batches.append([list(example.input_ids) for example in examples])
        if len(batches) == INTERRUPTED_AT:
            import signal

            signal.raise_signal(signal.SIGINT)
        return collate(self, examples)

    patch.setattr(Collator, "__call__", noting)
    assert cli(*command).status == 130
    interrupted = {
        run.config.template + str(run.config.seed): run for run in list_runs(folder / "runs")
    }
    assert [run.manifest["status"] for run in interrupted.values()] == [
        "done",
        "done",
        "interrupted",
    ]
    kept = {file: file.stat().st_mtime_ns for file in (folder / "answers").iterdir()}
    assert len(kept) == 4  # two untuned, two tuned
    assert cli(*command).status == 0
    patch.undo()
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    write(folder.parent / "batches.jsonl", batches)  # type: ignore[arg-type]
    return folder, command


# A training takes 4 or 5 batches and two evaluations of 3; the third is under way by then.
INTERRUPTED_AT = 2 * 11 + 5


def test_an_interrupted_comparison_goes_on_where_it_stopped(compared):
    folder, _ = compared
    runs = list_runs(folder / "runs")
    assert [run.manifest["status"] for run in runs] == ["done"] * 4
    assert {(run.config.template, run.config.seed) for run in runs} == {
        (template, seed) for template in ("alpaca", "reasoning") for seed in (1, 2)
    }
    assert all(run.manifest["steps"] == 4 for run in runs)
    found = {file.name for file in folder.iterdir()}
    assert found == {"plan.json", "runs", "answers", "comparison.json", "report.html"}


def test_the_formats_saw_the_same_rows_in_the_same_order(compared, phi2_tokenizer):
    folder, _ = compared
    lines = (folder.parent / "batches.jsonl").read_text().splitlines()
    texts = [phi2_tokenizer.decode(ids) for line in lines for ids in json.loads(line)]
    trainings = [
        [re.findall(r"Add \d+ and \d+", text) for text in group]
        for _, group in groupby(texts, key=lambda text: "<|system|>" in text)
    ]
    alpaca, reasoning, *_ = trainings  # with the first seed
    assert alpaca == reasoning and len(alpaca) >= 2 * 4 + 2 * 9


def test_the_result_as_json(compared, capsys):
    folder, command = compared
    assert cli(*command, "--json").status == 0  # everything is there: nothing is done again
    result = json.loads(capsys.readouterr().out)
    saved = json.loads((folder / "comparison.json").read_text())
    assert result == {"folder": str(folder), **saved}
    labels = ["alpaca", "reasoning", "alpaca, untuned", "reasoning, untuned"]
    assert list(result["figures"]) == labels
    for label in labels:
        figure = result["figures"][label]["bits_per_byte"]
        assert 0 < figure["low"] <= figure["value"] <= figure["high"]
        assert list(figure["seeds"]) == (["None"] if "untuned" in label else ["1", "2"])
    pairs = {(found["left"], found["right"]) for found in result["differences"]}
    assert pairs == {
        ("alpaca", "reasoning"),
        ("alpaca", "alpaca, untuned"),
        ("reasoning", "reasoning, untuned"),
    }
    assert len(result["rows"]) == 8 and len(result["arms"]) == 6
    assert all(len(arm["answers"]) == 8 for arm in result["arms"])
    # Four steps at a high rate teach a tiny model something about its own rows.
    tuned, base = (result["figures"][name]["bits_per_byte"]["value"] for name in labels[1::2])
    assert tuned < base


def test_the_table_in_the_terminal(compared, capsys):
    folder, command = compared
    assert cli(*command, "--by", "parity").status == 0
    out = capsys.readouterr().out
    assert "bits_per_byte ↓" in out and "alpaca, untuned" in out
    by = json.loads((folder / "comparison.json").read_text())["by"]["parity"]
    assert sum(group["rows"] for group in by.values()) == 8 and set(by) == {"even", "odd"}
    for value, group in by.items():
        assert f"parity {value}, {group['rows']} rows" in out
        assert list(group["figures"]) == [
            "alpaca",
            "reasoning",
            "alpaca, untuned",
            "reasoning, untuned",
        ]
    assert "alpaca is better than alpaca, untuned on" in out
    assert "report.html" in out


def test_runs_that_exist_are_compared_by_their_seeds(compared, data, capsys, tmp_path, monkeypatch):
    """On the rows that they keep: their source is gone, and no plugin has their formats."""
    folder, _ = compared
    runs = [str(run.folder) for run in list_runs(folder / "runs")]
    measure = ["--max-new-tokens", 8, "--rows", 8, "--no-include-base", "-o", tmp_path / "c"]
    monkeypatch.setenv("FASTTUNE_PLUGINS", "answers,language,likelihood,repetition")
    aside = data.rename(data.with_name("aside"))
    try:
        ended = cli("compare", *runs, *measure, "--json")
        evaluated = cli("evaluate", runs[0], *measure[:3], 8, "-o", tmp_path / "e", "--json")
    finally:
        aside.rename(data)
    assert ended.status == evaluated.status == 0
    result = json.loads(ended.out)
    saved = json.loads((folder / "comparison.json").read_text())
    for label in ("alpaca", "reasoning"):
        assert result["figures"][label] == saved["figures"][label]
    assert list(result["figures"]) == ["alpaca", "reasoning"]
    first = Run(Path(runs[0])).config
    [arm] = json.loads(evaluated.out)["arms"]
    assert arm == next(
        each
        for each in result["arms"]
        if (each["label"], each["seed"]) == (first.template, first.seed)
    )


def test_a_file_of_the_same_rows_has_the_same_figures(compared, tmp_path):
    """`evaluate` and `generate --score` are `compare` on one run."""
    folder, _ = compared
    saved = json.loads((folder / "comparison.json").read_text())
    run = next(run for run in list_runs(folder / "runs") if run.config.template == "reasoning")
    file = write(tmp_path / "labelled.jsonl", saved["rows"])
    words = ["--max-new-tokens", "8", "-o", str(tmp_path / "e"), "--by", "parity", "--json"]
    ended = cli("evaluate", run.folder, "-d", file, *words, "--include-base")
    assert ended.status == 0
    result = json.loads(ended.out)
    seed = str(run.config.seed)
    found = {name: figure["value"] for name, figure in result["figures"]["reasoning"].items()}
    compare = saved["figures"]["reasoning"].items()
    assert found == {name: figure["seeds"][seed] for name, figure in compare}
    untuned = "reasoning, untuned"
    assert result["figures"][untuned] == saved["figures"][untuned]  # intervals, too
    arms = {(arm["label"], arm["seed"]): arm["answers"] for arm in saved["arms"]}
    assert all(arm["answers"] == arms[arm["label"], arm["seed"]] for arm in result["arms"])
    assert {"even", "odd"} == {*result["by"]["parity"]}
    assert "<h1>Evaluation: reasoning</h1>" in (tmp_path / "e" / "report.html").read_text()

    ended = cli("evaluate", run.folder, "-d", file, *words[:-1])
    assert ended.status == 2 and "holds another comparison" in ended.err
    ended = cli("evaluate", run.folder, "-d", file, *words[:2], "-o", tmp_path / "alone")
    assert ended.status == 0 and "answering" in ended.err and "report.html" in ended.out
    table = ended.out.partition("below each")[0]
    answers = ["-o", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "8"]
    ended = cli("answer", run.folder, file, "--score", *answers)
    assert ended.status == 0 and ended.out.partition("below each")[0] == table
    aside = cli("answer", run.folder, file, "--score", *answers[2:])
    assert "bits_per_byte" in aside.err and len(aside.out.splitlines()) == 8

    bare = [{k: v for k, v in row.items() if k != "reasoning"} for row in saved["rows"]]
    ended = cli("evaluate", run.folder, "-d", write(tmp_path / "b.jsonl", bare), *words[:2],
                "-o", tmp_path / "bare", "--json")  # fmt: skip
    kept = json.loads(ended.out)["figures"]["reasoning"]
    assert kept["bits_per_byte"]["value"] == found["bits_per_byte"]
    nothing = {"bits_per_byte_reference", "p_eos", "exact_reasoning"}  # they mean nothing here
    assert {*found} - {*kept} == nothing


def test_what_cannot_be_evaluated(tiny_phi, data, tmp_path):
    ended = cli("evaluate", tiny_phi)
    assert ended.status == 2 and "holds no rows out" in ended.err
    unlabelled = write(tmp_path / "u.jsonl", [{"instruction": "Add 1 and 2."}])
    ended = cli("evaluate", tiny_phi, "-d", unlabelled, "-t", "alpaca")
    assert ended.status == 2 and "no column 'output'" in ended.err
    ended = cli("answer", tiny_phi, data, "--samples", 2, "--temperature", 1, "--score")
    assert ended.status == 2 and "--score takes" in ended.err
    assert cli("generate", tiny_phi, "question", "--score").status == 2


MADE = json.loads((Path(__file__).parents[1] / "old_run" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("facts", "what", "counts"),
    [
        ({"train_sha256": "0" * 64, "train_rows": 29}, "training rows", (30, 29)),
        (
            {"trained_sha256": "0" * 64, "train_rows": 28},
            "rows that are short enough to train on",
            (30, 28),
        ),
        ({"eval_rows": 9}, "held-out rows", (10, 9)),
    ],
)
def test_runs_on_other_rows_are_refused(facts, what, counts, tmp_path):
    one, other = (tmp_path / "runs" / name for name in ("one", "other"))
    for folder, template in ((one, "reasoning"), (other, "alpaca")):
        shutil.copytree(Path(__file__).parents[1] / "old_run", folder)
        Run(folder).update({"template": PLUGINS.facts(template)})
    if "eval_rows" in facts:
        facts = facts | {"heldout_sha256": data_hash(Run(other).held_out()[:9])}
        lines = (other / "heldout.jsonl").read_text().splitlines(keepends=True)
        (other / "heldout.jsonl").write_text("".join(lines[:9]))
    Run(other).update({"data": MADE["data"] | facts})
    ended = cli("compare", one, other)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        f"error: the {what} differ, so the runs cannot be compared",
        f"  where: {one}: {counts[0]} rows",
        f"    {other}: {counts[1]} rows",
        "  what to do: train both on the same rows: fasttune compare --templates A,B",
    ]


def test_a_run_with_an_equals_sign_in_its_path_is_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("seed=1", "seed=2"):
        shutil.copytree(Path(__file__).parents[1] / "old_run", tmp_path / "runs" / name)
    same = "error: two of the runs differ in nothing, not even the seed"
    for words in (("seed=1", "seed=2"), ("runs/seed=1", tmp_path / "runs" / "seed=2")):
        ended = cli("compare", *words)
        assert (ended.status, ended.err.splitlines()[0]) == (2, same)
    for word in ("seed=3", "train.epochs=2"):
        ended = cli("compare", "seed=1", "seed=2", word)
        assert ended.status == 2 and "finished runs keep their settings" in ended.err


def test_runs_whose_held_out_rows_are_damaged_or_not_there_are_refused(tiny_phi, tmp_path):
    folders = [tmp_path / "runs" / name for name in ("one", "other")]
    for folder, template in zip(folders, ("reasoning", "alpaca"), strict=True):
        shutil.copytree(Path(__file__).parents[1] / "old_run", folder)
        Run(folder).update({"template": PLUGINS.facts(template), "model": str(tiny_phi)})
    made = plan_runs([*map(Run, folders)], Measuring(), PLUGINS)
    assert made.about["rows"] == "rows.jsonl: 30 to train on, 10 held out"
    assert [row["instruction"] for row in made.formats[1].job.eval][:2] == [
        "Add 3 and 4.",
        "Add 5 and 6.",
    ]
    (folders[1] / "heldout.jsonl").unlink()
    for words in (("compare", *folders), ("evaluate", folders[1])):
        ended = cli(*words)
        assert ended.status == 2
        assert ended.err.splitlines() == [
            "error: the run's held-out rows are missing or damaged",
            f"  where: {folders[1] / 'heldout.jsonl'}",
            "  what to do: restore the file",
        ]
    for folder in folders:
        Run(folder).update({"data": MADE["data"] | {"heldout_sha256": data_hash([])}})
    assert "error: the runs hold no rows out\n" in cli("compare", *folders).err
    ended = cli("evaluate", folders[1])
    assert ended.status == 2 and f"{folders[1]} holds no rows out" in ended.err


def test_a_folder_of_another_comparison_is_left_alone(compared, capsys):
    folder, command = compared
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert cli(*command, "lora.r=8").status == 2
    assert "holds another comparison" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_saved_answers_are_read_back_while_they_are_true(compared, tmp_path, capsys, monkeypatch):
    """Under another name of the folder nothing is done again; an edited `parse` is noticed."""
    folder, command = compared
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    words = [str(moved) if word == str(folder) else word for word in command]
    assert cli(*words).status == 0
    said = capsys.readouterr().err
    assert "training" not in said and "answering" not in said
    parse = Template.parse
    monkeypatch.setattr(
        Template,
        "parse",
        lambda self, text: (
            {"reasoning": "", "response": text} if self.name == "reasoning" else parse(self, text)
        ),
    )
    assert cli(*words).status == 0
    said = capsys.readouterr().err
    assert "training" not in said and said.count("answering") == 3  # untuned, and two seeds
    saved = json.loads((moved / "answers" / "reasoning-seed-1.json").read_text())
    assert all(line["sections"]["response"] == line["text"] for line in saved["answers"])


def test_answers_that_are_damaged_or_of_a_run_that_is_gone_are_not_used(compared, tmp_path, capsys):
    folder, command = compared
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    lost = next(run for run in list_runs(copy / "runs") if run.config.template == "alpaca")
    shutil.rmtree(lost.folder)
    damaged = copy / "answers" / "reasoning-seed-1.json"
    damaged.write_text(damaged.read_text()[:99])
    assert cli(*[str(copy) if word == str(folder) else word for word in command]).status == 0
    said = capsys.readouterr().err
    assert said.count("training alpaca") == 1 and said.count("answering") == 2
    assert f"warning: {damaged} is damaged" in said


def test_runs_of_one_name_and_runs_that_are_not_done(compared, tmp_path, capsys):
    folder, _ = compared
    first = next(run for run in list_runs(folder / "runs") if run.config.template == "alpaca")
    for name, dtype in (("A", "float16"), ("B", "bfloat16")):
        shutil.copytree(first.folder, tmp_path / name / "myrun")
        Run(tmp_path / name / "myrun").update({"dtype": dtype})  # so that they differ
    both = [Run(tmp_path / name / "myrun") for name in "AB"]
    labels = [each.label for each in plan_runs(both, Measuring(), PLUGINS).formats]
    assert labels == [str(run.folder) for run in both]
    both[0].update({"status": "interrupted"})
    assert cli("compare", *(str(run.folder) for run in both)).status == 2
    assert "is not done; its status is interrupted" in capsys.readouterr().err
