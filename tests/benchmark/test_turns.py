"""The benchmark: its figures, its processes, and that all arms compute the same training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

# isort: split
import pytest

from fasttune.benchmark import arms
from fasttune.benchmark.arms import TRAININGS, Spec
from fasttune.benchmark.figures import BenchStep, step_figures
from fasttune.benchmark.turns import Outcome, Worker, make_spec, resolved, run_arms
from fasttune.config import LoraConfig, ModelConfig, RunConfig, TrainConfig
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.machine import this_device
from fasttune.models.choices import decide
from tests.conftest import cli, listening

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [
        {
            "instruction": f"Add {n} and {n + 1}.",
            "input": "",
            "reasoning": f"{n} + {n + 1} = {2 * n + 1}. " * (1 + n % 3),
            "output": f"{2 * n + 1}",
        }
        for n in range(14)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# Figures


def test_figures_on_steps_made_by_hand():
    def steps(seconds: list[float], losses: list[float]) -> list[BenchStep]:
        tokens = [100, 100, 100, 200, 100, 100, 300]
        return [BenchStep(*step) for step in zip(seconds, tokens, losses, strict=True)]

    losses = [4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0]
    found = step_figures(
        {
            "plain": steps([9, 9, 1, 3, 2, 2, 2], losses),
            "unsloth": steps([7, 7, 1, 2, 1, 1, 1], [*losses[:-1], 2.02]),
            "fasttune": steps([5, 9, 0.5, 1, 1, 1, 0.25], [4.0, 3.3, *losses[2:]]),
        },
        block=2,
    )
    plain, unsloth, ours = found["plain"], found["unsloth"], found["fasttune"]
    # Blocks after the warm-up: 300, 200 and 300 tokens, the last of one step.
    assert plain["tokens_per_second"] == 75  # of 75, 50 and 150
    assert unsloth["tokens_per_second"] == 100  # of 100, 100 and 300
    assert ours["tokens_per_second"] == 200  # of 200, 100 and 1200
    assert ours["tokens_per_second_overall"] == 800 / 3.75
    assert plain["seconds_per_step"] == 2 and ours["seconds_per_step"] == 1
    assert ours["warmup_seconds"] == 14
    assert unsloth["speedup"] == {"median": 1, "low": 1, "high": 1}
    assert ours["speedup"] == {"median": 2, "low": 1, "high": 4}  # 3/1.5, 2/2 and 1/0.25
    assert plain["speedup"] == {"median": 0.5, "low": 0.5, "high": 0.75}
    assert unsloth["first_loss"] == 4 and unsloth["final_loss"] == 2.02  # one step is a quarter
    assert unsloth["final_loss_difference"] == pytest.approx(0.01)
    assert unsloth["largest_loss_difference"] == pytest.approx(0.01)
    assert ours["final_loss_difference"] == 0
    assert ours["largest_loss_difference"] == pytest.approx(0.1)


def test_without_plain_and_unsloth_nothing_is_compared_with_them():
    found = step_figures({"fasttune": [BenchStep(1, 10, 2.0)] * 2}, block=1)["fasttune"]
    assert found["final_loss_difference"] is None and found["speedup"]["median"] == 1


# What is given to the arms


def test_a_benchmark_takes_whole_steps_and_more_than_one_block():
    rows = [Encoded([1, 2], [], 1)] * 23
    config = RunConfig(train=TrainConfig(batch_size=2, gradient_accumulation=2, epochs=2))
    with listening() as told:
        spec = make_spec(rows, config, 4, False)
    assert len(spec.rows) == 20 and spec.steps == spec.config.train.max_steps == 10
    assert told == ["left out the last 3 rows, which fill no step of 4"]
    with pytest.raises(FasttuneError, match="make 10 steps of 4; the first 10 warm up"):
        make_spec(rows, config, 10, False)


def test_an_arm_has_the_fast_path_on(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(arms, "train_fasttune", lambda *arguments: given.append(arguments))
    spec = Spec(RunConfig(), [], 3, False)
    TRAININGS["fast_path"](spec, "pace", tmp_path)
    [(found, *others)] = given
    assert found.config.model == ModelConfig(fast_path="on") and others == ["pace", tmp_path]
    assert (found.rows, found.steps) == ([], 3)


def test_an_optimiser_that_the_plain_loop_lacks_is_refused():
    config = RunConfig(train=TrainConfig(optimizer="adafactor"))
    with pytest.raises(FasttuneError, match="not every arm can use the optimiser 'adafactor'"):
        resolved(config, "model", decide(config, this_device()))


def resolved_spec(config: RunConfig) -> Spec:
    return Spec(resolved(config, str(config.model.name), decide(config, this_device())), [], 1)


@pytest.mark.parametrize("arm", ["plain", "unsloth", "fasttune"])
@pytest.mark.parametrize("dropout", ["off", "config"])
def test_all_arms_have_the_same_dropouts(arm, dropout, tiny_phi, monkeypatch, tmp_path):
    """Of the base model, 0.1 in Phi-2's config, and of the adapters."""
    import torch

    class Seen(Exception):
        pass

    def see(model, seed):
        found = {n: m.p for n, m in model.named_modules() if type(m) is torch.nn.Dropout}
        raise Seen(sorted((name.rpartition("layers.")[2], p) for name, p in found.items()))

    monkeypatch.setattr(arms, "start_adapters", see)
    model = ModelConfig(str(tiny_phi), quantization="none", precision="fp32", dropout=dropout)
    config = RunConfig(model=model, lora=LoraConfig(r=2, targets=("fc1", "fc2"), dropout=0.05))
    with pytest.raises(Seen) as seen:
        TRAININGS[arm](resolved_spec(config), None, tmp_path)
    [found] = seen.value.args
    own = 0.0 if dropout == "off" else 0.1
    assert found == sorted(
        [("base_model.model.model.embed_dropout", 0.0)]
        + [(f"{n}.resid_dropout", own) for n in (0, 1)]
        + [(f"{n}.mlp.{m}.lora_dropout.default", 0.05) for n in (0, 1) for m in ("fc1", "fc2")]
    )


# Turns


class FakeWorker:
    """An arm without a process: notes what happens, and takes every step at once."""

    def __init__(self, arm: str, events: list[str]) -> None:
        self.arm, self.events = arm, events
        self.answers: list[dict[str, float]] = [{"parameters": 7}]

    def __enter__(self):
        self.events.append(f"{self.arm} starts")
        return self

    def __exit__(self, *error):
        self.events.append(f"{self.arm} ends")

    def send(self, steps: int) -> None:
        if steps:
            self.events.append(f"{self.arm} {steps}")
        self.answers += [{"seconds": 2.0, "loss": 1.0}] * steps or [{"peak_memory": 5}]

    def receive(self):
        return self.answers.pop(0)


@pytest.fixture
def events(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("fasttune.benchmark.turns.Worker", lambda arm, *_: FakeWorker(arm, found))
    return found


IN_TURNS = [
    "plain starts", "fasttune starts", "plain 2", "fasttune 2", "fasttune 1", "plain 1",
    "fasttune ends", "plain ends",
]  # fmt: skip
ONE_BY_ONE = [
    "plain starts", "plain 2", "plain 1", "plain ends",
    "fasttune starts", "fasttune 2", "fasttune 1", "fasttune ends",
]  # fmt: skip


@pytest.mark.parametrize(("together", "expected"), [(True, IN_TURNS), (False, ONE_BY_ONE)])
def test_arms_that_do_not_fit_together_train_one_after_the_other(together, expected, events):
    rows = [Encoded([1, 2, 3], [], 1)] * 12
    config = RunConfig(train=TrainConfig(batch_size=4, epochs=1))
    spec = make_spec(rows, config, 2, False)
    found = run_arms(["plain", "fasttune"], spec, 2, together)
    assert events == expected
    steps = [BenchStep(2.0, 12, 1.0)] * 3
    assert found == {arm: Outcome(steps, 7, 5) for arm in ("plain", "fasttune")}


@pytest.mark.parametrize(
    ("factor", "expected"), [(2.01, IN_TURNS), (1.99, ONE_BY_ONE), (None, ONE_BY_ONE)]
)
def test_the_plan_says_whether_the_arms_fit_together(
    factor, expected, tiny_llama, data, events, tmp_path, monkeypatch, capsys
):
    """Two arms take twice what the plan counts for one; None is a model without a plan."""

    def foresee(config, model, lengths, device):
        memory = SimpleNamespace(peak=device.memory / factor)
        return SimpleNamespace(config=config, memory=memory)

    monkeypatch.setattr("fasttune.benchmark.turns.foresee", foresee if factor else lambda *_: None)
    command = [
        "bench", "--data", str(data), "--model", str(tiny_llama), "--arms", "plain,fasttune",
        "--block", "2", "--rows", "12", "--output", str(tmp_path / "result"), "train.batch_size=4",
    ]  # fmt: skip
    assert cli(*command).status == 0
    said = capsys.readouterr().err
    assert events == expected
    assert ("they train one after the other" in said) == (expected == ONE_BY_ONE)


def test_a_benchmark_started_as_several_processes_is_refused(tiny_llama, data, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        "fasttune.benchmark.turns.Worker", lambda *_: pytest.fail("an arm was started")
    )
    assert cli("bench", "--data", str(data), "--model", str(tiny_llama)).status == 2
    assert "\nerror: 2 processes were started" in capsys.readouterr().err


# Processes


def test_an_arm_that_dies_is_one_error_with_its_last_words(tmp_path):
    spec = Spec(RunConfig(model=ModelConfig(str(tmp_path / "none"), precision="fp32")), [], 1)
    with Worker("plain", spec, tmp_path) as worker, pytest.raises(FasttuneError) as caught:
        worker.receive()
    assert "the plain arm ended early (exit status 1)" in caught.value.message
    assert str(tmp_path / "none") in caught.value.where.splitlines()[-1]


@pytest.fixture
def misspelt(tiny_llama, data, tmp_path) -> list[str]:
    return [
        "bench", "--data", str(data), "--model", str(tiny_llama), "--arms", "plain", "--block", "1",
        "--output", str(tmp_path / "result"), "lora.targets=o_porj", "model.quantization=none",
    ]  # fmt: skip


def test_a_target_that_the_plan_does_not_find_starts_no_arm(misspelt, monkeypatch, capsys):
    monkeypatch.setattr(
        "fasttune.benchmark.turns.Worker", lambda *_: pytest.fail("an arm was started")
    )
    assert cli(*misspelt).status == 2
    assert "error: LoRA target 'o_porj' matches no layer of this llama" in capsys.readouterr().err


def test_an_arm_that_refuses_is_its_own_error(misspelt, tmp_path, monkeypatch, capsys):
    # As for an architecture that the planner does not know.
    monkeypatch.setattr("fasttune.benchmark.turns.foresee", lambda *_: None)
    status = cli(*misspelt).status
    told = capsys.readouterr().err
    assert status == 2 and "Traceback" not in told
    assert "error: the plain arm failed: LoRA target 'o_porj' matches no layer" in told
    assert "did you mean 'o_proj'?" in told and not (tmp_path / "result").exists()


# All of it


def test_all_arms_take_the_same_steps_and_the_result_says_so(tiny_phi, data, tmp_path, capsys):
    """In fp32 every loss agrees, over a warm-up, clipped gradients and a second epoch."""
    target = tmp_path / "result"
    command = [
        "bench", "--template", "reasoning", "--data", str(data), "--model", str(tiny_phi),
        "--rows", "12", "--block", "2", "--output", str(target), "--json", "lora.r=4",
        "model.quantization=none", "model.precision=fp32", "train.batch_size=2",
        "train.gradient_accumulation=2", "train.epochs=2", "train.warmup_steps=1",
        "train.learning_rate=1e-2", "train.max_grad_norm=0.5",
    ]  # fmt: skip
    assert cli(*command).status == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((target / "bench.json").read_text())
    assert printed == {"folder": str(target), **saved}
    assert (target / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in target.iterdir()) == ["bench.json", "bench.png"]

    assert [*saved["arms"]] == ["plain", "unsloth", "fasttune"]
    assert saved["steps"] == 6 and saved["rows_per_step"] == 4 and saved["warmup_steps"] == 2
    assert saved["config"]["train"]["optimizer"] == "adamw_torch"
    plain = saved["arms"]["plain"]
    assert plain["steps"][-1]["loss"] < plain["steps"][0]["loss"] - 1  # it really trains
    for arm, values in saved["arms"].items():
        assert values["gradient_checkpointing"] == "off"
        assert values["peak_memory_bytes"] > 2**28, arm  # torch alone is more
        assert values["tokens_per_second"] > 0 and values["warmup_seconds"] > 0
        for step, other in zip(values["steps"], plain["steps"], strict=True):
            assert step["loss"] == pytest.approx(other["loss"], rel=1e-3), arm
            assert step["tokens"] == other["tokens"] and step["seconds"] > 0
        assert sum(step["tokens"] for step in values["steps"]) == 2 * saved["data"]["tokens"]
        assert values["largest_loss_difference"] <= 1e-3

    assert cli(*command).status == 2  # at once: a result is never overwritten
    assert "the result folder exists" in capsys.readouterr().err
