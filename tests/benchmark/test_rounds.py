"""Answering and preparing rows by several ways, round by round."""

import json

import pytest

from fasttune.benchmark.rounds import compare_rounds, run_rounds
from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow


def test_figures_by_hand():
    found = compare_rounds({"one": [2.0, 4.0, 3.0], "two": [1.0, 1.0, 3.0]}, 6)
    assert found["one"] == {"rows_per_second": 2.0, "speedup": 1.0, "seconds": [2.0, 4.0, 3.0]}
    assert found["two"]["rows_per_second"] == 6.0
    assert found["two"]["speedup"] == 2.0  # of 2, 4 and 1


def test_every_arm_once_a_round():
    did = []
    arms = {name: lambda name=name: did.append(name) or len(did) for name in "ab"}
    seconds, last = run_rounds(arms, 2, lambda: did.append("begin"))
    assert did == ["begin", "a", "b", "begin", "a", "b"]
    assert last == {"a": 5, "b": 6} and [len(taken) for taken in seconds.values()] == [2, 2]


def test_what_cannot_be_measured_is_refused():
    ended = cli("bench", "--what", "sleep")
    assert ended.status == 2 and "choose from: train, generate, prepare" in ended.err


@pytest.mark.parametrize(
    ("what", "arms"),
    [
        ("generate", ["pipeline", "batches", "fasttune"]),
        ("prepare", ["trl", "trl x2", "fasttune", "cached"]),
    ],
)
def test_the_arms_do_the_same_work(what, arms, tiny_phi, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", rows(6))
    ended = cli(
        "bench", "--what", what, "--template", "alpaca", "--data", data, "--model", tiny_phi,
        "--rounds", 1, "--output", tmp_path / "out", "model.precision=fp32",
        "samples.batch_size=4", "samples.max_new_tokens=5",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert list(found["arms"]) == arms and found["data"]["rows"] == 6
    for values in found["arms"].values():
        assert len(values["seconds"]) == 1 and values["rows_per_second"] > 0
    if what == "generate":  # in fp32 batches give the same tokens
        assert [values["same_answers"] for values in found["arms"].values()] == [6, 6, 6]
        assert "rows/min" in ended.out and "6 of 6" in ended.out
    else:
        assert len({values["tokens"] for values in found["arms"].values()}) == 1
    again = cli("bench", "--what", what, "--data", data, "--output", tmp_path / "out")
    assert again.status == 2 and "the result folder exists" in again.err
