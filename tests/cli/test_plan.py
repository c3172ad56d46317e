"""`fasttune plan`, and the plan within `fasttune run`."""

from __future__ import annotations

import json
import re

import pytest

from fasttune.machine import Device
from fasttune.runs import find_run
from tests.cli.test_app import HEAVY, modules_after
from tests.conftest import cli, listening

SMALL_RAM = Device("CPU", "cpu", 1.16e9, matmul=1e11)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Add {n} and 1.", "output": f"{n + 1} " * 60} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def long_rows(tmp_path):
    file = tmp_path / "long.jsonl"
    row = {"instruction": "Count.", "output": "1 " * 900}
    file.write_text(f"{json.dumps(row)}\n" * 12)
    return str(file)


def machine(monkeypatch, device):
    """Let this machine be that device, for the commands and for training."""
    monkeypatch.setattr("fasttune.machine.this_device", lambda: device)
    monkeypatch.setattr("fasttune.training.train.this_device", lambda: device)


@pytest.fixture
def small_ram(monkeypatch):
    machine(monkeypatch, SMALL_RAM)


def run(tiny_phi, data, tmp_path, *more):
    return cli(
        "run", "--template", "alpaca", "--data", data, "--model", str(tiny_phi),
        "--output", str(tmp_path / "runs"), "data.eval_fraction=0", "samples.count=0",
        "model.precision=fp32", "train.max_steps=1", "train.warmup_steps=0", *more,
    ).status  # fmt: skip


def test_a_plan_for_a_gpu_imports_nothing_heavy():
    assert modules_after("plan", "--gpu", "t4").isdisjoint(HEAVY)


def test_the_default_on_a_gpu_is_phi_2(capsys):
    long = ("plan", "--gpu", "t4", "model.max_length=2048", "train.batch_size=2")
    assert cli(*long).status == 0
    assert re.search(r"^answers +5.7\d  keys", capsys.readouterr().out, re.M)  # six rows as long
    assert cli(*long, "samples.count=0").status == 0
    shown = capsys.readouterr().out
    assert "microsoft/phi-2: 2,779.7 M parameters, base in NF4, LoRA 23.59 M" in shown
    assert shown.startswith("fits: 4.2 of 16 GB (T4)\n") and "\ncheckpointing unsloth\n" in shown
    assert "the largest batch has 4096 tokens, a mean step" in shown
    assert "17.32 GFLOP a token" in shown and " steps: " not in shown
    figures = dict(re.findall(r"^(weights|adapters|activations|in all) +([\d.]+)", shown, re.M))
    assert figures == {
        "weights": "1.82",
        "adapters": "0.24",
        "activations": "0.67",
        "in all": "4.23",
    }


def test_json_has_the_parts_and_what_fits(capsys):
    arguments = ["plan", "--gpu", "16GB", "--json", "train.max_steps=10", "train.batch_size=1"]
    assert cli(*arguments).status == 0
    plan = json.loads(capsys.readouterr().out)
    assert sum(plan["bytes"].values()) == pytest.approx(plan["peak_bytes"], abs=5)
    assert plan["fits"] and plan["steps"] == 10 and plan["rows"] is None
    assert plan["seconds_per_step"] is None
    # one row of 1024 goes without: 2.77 GB of activations and 5.03 of what is out of NF4, 1.82 of
    # weights, 0.24, 0.16 and 1
    assert plan["gradient_checkpointing"] == "off" and 10.9e9 < plan["peak_bytes"] < 11.1e9
    lengths = {line["tokens"]: line for line in plan["largest_batch"]}
    assert set(lengths) == {256, 512, 1024, 2048}
    assert lengths[2048]["off"] == 1 and lengths[2048]["on"] > 10


def test_rows_are_counted_with_the_models_tokenizer(tiny_phi, data, capsys):
    arguments = ["plan", "-t", "alpaca", "-d", data, "-m", str(tiny_phi), "--gpu", "t4", "--json"]
    assert cli(*arguments, "data.eval_fraction=0").status == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == 12 and plan["steps"] == 30
    assert 100 < plan["step_tokens"] <= plan["peak_tokens"] < 1000


def test_without_a_tokenizer_every_row_is_as_long_as_it_may_be(data, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    assert cli("plan", "-t", "alpaca", "-d", data, "--gpu", "t4", "--json").status == 0
    captured = capsys.readouterr()
    assert "rows not counted" in captured.err
    assert json.loads(captured.out)["peak_tokens"] == 4 * 1024


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpu", "a10h"], "did you mean 'a10'"),
        (["--gpu", "2GB"], "take a smaller model"),
        (
            ["--gpu", "16GB", "train.gradient_checkpointing=off"],
            "this fits: train.batch_size=2 train.gradient_accumulation=2",
        ),
        (["--gpu", "t4", "lora.targets=o_proj"], "matches no layer of this phi"),
        (["--gpu", "t4", "train.batch=2"], "there is no setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_ends_with_status_2(arguments, expected, capsys):
    assert cli("plan", *arguments).status == 2
    assert expected in capsys.readouterr().err


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(
    tiny_phi, long_rows, tmp_path, small_ram, monkeypatch, capsys
):
    monkeypatch.setattr(
        "fasttune.training.train.load_base", lambda *_: pytest.fail("a model was loaded")
    )
    too_much = ("train.batch_size=12", "train.gradient_checkpointing=off")
    assert run(tiny_phi, long_rows, tmp_path, *too_much) == 2
    error = capsys.readouterr().err
    assert "plan: 1." in error and "of 1.2 GB" in error
    assert "error: the run needs 1." in error and "and CPU has 1.2 GB" in error
    assert "what to do: this fits: " in error
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_is_ignored_is_a_warning(tiny_phi, long_rows, tmp_path, small_ram, capsys):
    asked = ("train.batch_size=12", "train.gradient_checkpointing=off", "train.ignore_plan=true")
    assert run(tiny_phi, long_rows, tmp_path, *asked, "--dry-run") == 0
    assert "warning: the run needs 1." in capsys.readouterr().err


def test_the_setting_that_the_refusal_names_is_accepted(
    tiny_phi, long_rows, tmp_path, small_ram, capsys
):
    asked = ["train.batch_size=12", "train.gradient_checkpointing=off", "--dry-run", "--json"]
    assert run(tiny_phi, long_rows, tmp_path, *asked) == 2
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert not plan["fits"] and plan["suggestion"]
    assert run(tiny_phi, long_rows, tmp_path, *asked, *plan["suggestion"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["fits"]


def test_a_run_says_its_plan_and_keeps_the_prediction(tiny_phi, data, tmp_path, capsys):
    assert run(tiny_phi, data, tmp_path) == 0
    said = capsys.readouterr().err.splitlines()
    [plan] = [line for line in said if line.startswith("plan: ")]
    assert "base unquantised, checkpointing off" in plan
    assert said.index(plan) < next(at for at, line in enumerate(said) if line.startswith("LoRA"))
    found = find_run("last", tmp_path / "runs")
    assert found.manifest["planned_memory_bytes"] > 0.6e9
    assert found.config.train.gradient_checkpointing == "auto"  # decided anew where it is resumed


def test_checkpointing_is_switched_on_where_memory_is_short(
    tiny_phi, data, tmp_path, monkeypatch, capsys
):
    from fasttune.models.load import load_base

    asked: list[object] = []

    def load(config, choices, tokenizer):
        asked.append(choices.unsloth_checkpointing)
        return load_base(config, choices, tokenizer)

    monkeypatch.setattr("fasttune.training.train.load_base", load)
    batch = "train.batch_size=12"
    assert run(tiny_phi, data, tmp_path, batch, "--dry-run", "--json") == 0
    without = json.loads(capsys.readouterr().out)["plan"]
    assert without["gradient_checkpointing"] == "off"
    tight = Device("CPU", "cpu", 1.05 * without["peak_bytes"], matmul=1e11)
    machine(monkeypatch, tight)
    assert run(tiny_phi, data, tmp_path, batch) == 0
    assert asked == [True]
    assert "checkpointing on" in capsys.readouterr().err


def test_an_unknown_architecture_is_trained_without_a_plan(monkeypatch, tmp_path, capsys):
    from fasttune.config import RunConfig
    from fasttune.planning.forecast import foresee

    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with listening() as said:
        assert foresee(RunConfig(), str(tmp_path), [10], SMALL_RAM) is None
    assert said == ["no plan: the planner does not know the architecture 'mamba'"]
