"""A run that goes on after its end, and runs and checkpoints that are used before it."""

from __future__ import annotations

import json
import shutil

import tests.unsloth_first  # noqa: F401

# isort: split
import pytest

from fasttune.runs import Run, find_run
from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow

THEIRS = ("--map", "instruction=question", "--map", "output=answer")


@pytest.fixture(scope="module")
def ground(tmp_path_factory, tiny_llama):
    """A folder with rows of other columns, and a run of one epoch of four steps on them."""
    folder = tmp_path_factory.mktemp("continue")
    kept = [{"question": row["instruction"], "answer": row["output"]} for row in rows(20)]
    write_rows(folder / "rows.jsonl", kept)
    settings = [
        "run", "-t", "alpaca", "-d", folder / "rows.jsonl", *THEIRS, "-m", tiny_llama,
        "data.eval_fraction=0.2", "train.batch_size=4", "train.learning_rate=1e-2",
        "samples.count=1", "samples.max_new_tokens=2", "model.precision=fp32",
        "train.warmup_steps=1",
    ]  # fmt: skip
    for name, epochs in (("short", 1), ("long", 3)):
        ended = cli(*settings, f"train.epochs={epochs}", "-o", folder / name)
        assert ended.status == 0, ended.err
    return folder


@pytest.fixture
def run(ground, tmp_path, monkeypatch) -> Run:
    """The short run in a folder of its own."""
    shutil.copytree(ground / "short", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return find_run("last", tmp_path / "runs")


def rates(run: Run) -> list[float]:
    return [line["learning_rate"] for line in run.metrics() if "loss" in line]


def test_a_finished_run_continues_with_the_rates_of_a_longer_one(run, ground):
    whole = find_run("last", ground / "long")
    taken = run.manifest["steps"]
    assert whole.manifest["steps"] == 3 * taken
    ended = cli("run", "--resume", run.folder, "train.epochs=3")
    assert ended.status == 0, ended.err
    said = f"continuing after step {taken} with {3 * taken} steps instead of {taken}"
    assert said in ended.err and "the cosine schedule" in ended.err
    assert rates(run)[taken:] == rates(whole)[taken:] and len(rates(run)) == 3 * taken
    assert run.manifest["status"] == "done" and run.manifest["continued"] == [taken]
    assert run.config.train.epochs == 3 and run.check_adapter() is None
    ended = cli("run", "--resume", run.folder, f"train.max_steps={taken}")
    assert ended.status == 2 and f"has taken {3 * taken} steps" in ended.err
    assert f"train.max_steps={6 * taken}" in ended.err and run.manifest["status"] == "done"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "train.epochs=N"),
        (["lora.r=4"], "keeps its settings, except train.epochs and train.max_steps"),
        (["train.epochs=1"], "has taken"),
        (["train.epochs=0"], "above 0"),
    ],
)
def test_what_continues_nothing_is_refused(words, said, run):
    before = (run.folder / "manifest.json").read_text()
    ended = cli("run", "--resume", run.folder, *words)
    assert ended.status == 2 and said in ended.err
    shutil.rmtree(run.checkpoints)
    ended = cli("run", "--resume", run.folder, "train.epochs=3")
    assert ended.status == 2 and "has no checkpoint to continue from" in ended.err
    assert (run.folder / "manifest.json").read_text() == before


def test_checkpoints_and_interrupted_runs_answer_and_are_exported(run):
    [checkpoint] = run.checkpoints.glob("checkpoint-*")
    ended = cli("generate", checkpoint, "Add 1 and 2.", "--max-new-tokens", "2")
    assert ended.status == 0 and f"note: this is {checkpoint.name} of {run.name}" in ended.err
    ended = cli("generate", run.checkpoints / "checkpoint-99", "x")
    assert ended.status == 2 and f"choose from: {checkpoint.name}" in ended.err
    ended = cli("run", "--resume", checkpoint)
    assert ended.status == 2 and f"give its run: {run.folder}" in ended.err
    run.update({"status": "interrupted"})
    shutil.rmtree(run.adapter)
    ended = cli("export", run.folder, "--to", "adapter", "--rows", "1")
    assert ended.status == 0 and "the status of the run is interrupted" in ended.err, ended.err
    folder = run.folder / "exports" / f"adapter-{checkpoint.name}"
    assert f"from {checkpoint.name} of a run." in (card := (folder / "README.md").read_text())
    assert "The run did not finish: its status is interrupted." in card
    assert not [*folder.glob("*.pt*"), *folder.glob("trainer_state.json"), *folder.glob("*.bin")]
    assert json.loads((folder / "verification.json").read_text())["checkpoint"] == checkpoint.name
    ended = cli("evaluate", run.folder, "--max-new-tokens", "2", "--json")
    assert ended.status == 0 and f"{checkpoint.name} of {run.name}" in ended.out
    (checkpoint / "SHA256SUMS").unlink()
    ended = cli("generate", checkpoint, "x")
    assert ended.status == 2 and f"{checkpoint.name} is incomplete" in ended.err


def test_the_columns_and_the_held_out_rows_of_a_run_are_the_defaults(run, ground):
    held_out = len(run.held_out())
    few = ("--max-new-tokens", "2")
    ended = cli("answer", run.folder, *few)
    assert ended.status == 0 and len(ended.out.splitlines()) == held_out
    ended = cli("answer", run.folder, ground / "rows.jsonl", *few)
    assert ended.status == 0 and len(ended.out.splitlines()) == 20
    assert "columns as in the run: instruction=question, output=answer" in ended.err
    write_rows(run.folder.parent / "ours.jsonl", rows(2))
    assert cli("answer", run.folder, run.folder.parent / "ours.jsonl", *few).status == 0
    ended = cli("evaluate", run.folder, "-d", ground / "rows.jsonl", *few, "--json")
    assert ended.status == 0 and f"trained on {20 - held_out} of these 20 rows" in ended.err
