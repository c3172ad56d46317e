"""What "auto" stands for in the learning rate, the epochs and the warm-up."""

from __future__ import annotations

import pytest

from fasttune.config import load_config
from fasttune.models.demo import DEMO_MODEL
from fasttune.planning.schedule import settle
from tests.conftest import cli, listening, rows, tiny_model, write_rows

PHI2 = "microsoft/phi-2"


@pytest.mark.parametrize(
    ("model", "rows", "given", "rate", "epochs", "warmup"),
    [
        (DEMO_MODEL, 58, [], 2e-3, 4, 5),
        (DEMO_MODEL, 3, [], 2e-3, 10, 1),
        (DEMO_MODEL, 58, ["train.batch_size=58"], 2e-3, 10, 1),
        (DEMO_MODEL, 58, ["train.max_steps=14"], 2e-3, 4, 1),
        (DEMO_MODEL, 1, ["train.max_steps=1"], 2e-3, 10, 0),
        (PHI2, 5000, [], 2e-4, 1, 5),
        (PHI2, 58, [], 2e-4, 4, 5),
        (PHI2, None, [], 2e-4, 1, 5),
        (PHI2, 58, ["train.epochs=1"], 2e-4, 1, 1),
        (PHI2, 58, ["train.learning_rate=1e-5", "train.warmup_steps=9"], 1e-5, 4, 9),
    ],
)
def test_auto_follows_the_model_and_the_rows(model, rows, given, rate, epochs, warmup):
    config = load_config(None, given)
    with listening() as said:
        train = settle(config, model, rows).train
    assert (train.learning_rate, train.epochs, train.warmup_steps) == (rate, epochs, warmup)
    assert sum(line.startswith("auto: ") for line in said) == 1
    with listening() as said:
        assert settle(config=load_config(None, [("train", vars(train))]), model=model, rows=rows)
    assert not said


def test_a_model_that_cannot_be_planned_is_measured_by_its_weights(small_tokenizer):
    model = tiny_model(
        "gpt_neox", small_tokenizer, vocab_size=4160, num_key_value_heads=4
    )  # of a kind unknown to the planner
    with listening() as said:
        settle(load_config(None, []), str(model), 58)
    assert said[0].startswith("auto: learning rate 0.002 (1."), said
    (model / "model.safetensors").unlink()
    with listening() as said:
        assert settle(load_config(None, []), str(model), 58).train.learning_rate == 2e-4
    assert "a model of unknown size" in said[0]


def test_the_commands_before_a_run_say_what_auto_is(tmp_path, tiny_llama, monkeypatch):
    """The settings of 58 rows: a run with them lowers the loss, one epoch at 2e-4 does not."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(58))
    said = "learning rate 0.002 (1.4 M parameters), epochs 4 (58 rows, 60 steps), warm-up 5"
    same = ("-d", "rows.jsonl", "-m", tiny_llama)
    settings = (*same, "-t", "alpaca", "data.eval_fraction=0")
    for command in (("run", "--dry-run"), ("plan",)):
        assert f"auto: {said}" in cli(*command, *settings).err
    assert f"auto: {said}" in cli("data", *same, "--eval-fraction", "0").err
    ended = cli("init", *same)
    assert "train.learning_rate: 0.002" in ended.err and ended.err.count("auto: ") == 1
    written = load_config(tmp_path / "fasttune.yaml").train
    assert (written.learning_rate, written.epochs, written.warmup_steps) == (2e-3, 4, 5)
