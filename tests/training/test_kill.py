"""The real command killed with SIGKILL, and resumed: as if nothing had happened.

The short form kills twice, where it matters most. FASTTUNE_KILL_LONG=1 (`make kill`) kills at 20
random moments, and writes what it hit to the file that FASTTUNE_KILL_REPORT names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fasttune.files import SEAL
from fasttune.runs import Run, find_run
from fasttune.runs.resume import last_checkpoint
from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow

LONG = os.environ.get("FASTTUNE_KILL_LONG") == "1"
COMMAND = [sys.executable, "-c", "from fasttune.cli import main; main()", "run"]
SETTINGS = [
    "--template", "reasoning", "--data", "rows.jsonl", "--model", "model",
    "model.quantization=none", "model.precision=fp32", "data.eval_fraction=0.2",
    "train.max_steps=15", "train.eval_steps=5", "train.save_steps=4", "train.batch_size=2",
    "train.warmup_steps=1", "train.learning_rate=1e-2", "lora.r=4", "lora.dropout=0.1",
    "samples.count=2", "samples.max_new_tokens=12",
]  # fmt: skip
MEASURED = ("tokens_per_second", "eval_seconds")
"""Keys of the metrics that tell time."""


class World:
    """A folder with a model, rows and runs, in which the command is started."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        shutil.copytree(model, folder / "model")
        write_rows(folder / "rows.jsonl", rows(40))

    def start(self, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                [*COMMAND, *map(str, arguments)], cwd=cwd or self.folder, stdout=said,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, output: Path) -> Run | None:
        found = [path for path in output.glob("*") if not path.name.startswith(".")]
        return Run(found[0]) if found else None

    def go_on(self, output: Path) -> subprocess.Popen[bytes]:
        """The run again: resumed, from another folder, or from the start where it has none."""
        run = self.run(output)
        if run is None:
            return self.start(*SETTINGS, "-o", output)
        return self.start("--resume", run.folder, cwd=self.folder / "model")

    def whole(self, output: Path) -> Run:
        run = self.run(output)
        if run is None or run.manifest["status"] != "done":
            ended = self.go_on(output).wait(300)
            assert ended == 0, (self.folder / "said.txt").read_text()[-3000:]
        run = self.run(output)
        assert run is not None and run.manifest["status"] == "done"
        run.check_adapter()
        assert not list(run.folder.rglob(".*")) and not list(output.glob(".*"))
        return run


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_llama) -> World:
    return World(tmp_path_factory.mktemp("world"), tiny_llama)


@pytest.fixture(scope="module")
def unbroken(world) -> Run:
    """In this process, which has imported everything already."""
    output = world.folder / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.folder)
        assert cli("run", *SETTINGS, "-o", output).status == 0
    return find_run("last", output)


def kill_when(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> bool:
    """Kill a process as soon as something is there; whether it was still at work."""
    while process.poll() is None and not there():
        time.sleep(0.001)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def writing_a_checkpoint(run: Run) -> bool:
    return any(not (path / SEAL).exists() for path in run.checkpoints.glob("checkpoint-*"))


def outcome(run: Run) -> dict[str, object]:
    """All that must not depend on interruptions."""
    metrics = [{k: v for k, v in line.items() if k not in MEASURED} for line in run.metrics()]
    return {
        "adapter": (run.adapter / "adapter_model.safetensors").read_bytes(),
        "metrics": metrics,
        "answers": json.loads((run.folder / "samples.json").read_text()),
        "steps": run.manifest["steps"],
    }


@pytest.mark.skipif(LONG, reason="the long form kills there, too")
def test_a_run_killed_twice_ends_as_one_without_a_break(world, unbroken):
    output = world.folder / "killed"

    def first_checkpoint_begun() -> bool:
        run = world.run(output)
        return run is not None and writing_a_checkpoint(run)

    assert kill_when(world.go_on(output), first_checkpoint_begun)
    run = world.run(output)
    assert run is not None and last_checkpoint(run) is None and len(run.metrics()) > 3
    assert run.manifest["status"] == "running" and not run.adapter.exists()

    assert kill_when(world.go_on(output), lambda: len(run.metrics()) > 11)
    assert last_checkpoint(run) is not None
    run.log({"step": 10, "loss": 99.0})
    assert outcome(world.whole(output)) == outcome(unbroken)


def test_a_run_answers_and_is_exported_from_another_folder(world, unbroken, tmp_path, monkeypatch):
    """Its model and its rows were given by relative paths."""
    monkeypatch.chdir(tmp_path)
    assert unbroken.config.data.train == str(world.folder / "rows.jsonl")
    assert cli("generate", unbroken.folder, "Add 3 and 4.", "--max-new-tokens", "3").status == 0
    assert cli("export", unbroken.folder, "-o", "out", "--rows", "2").status == 0
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["verified"]


def hit(run: Run | None) -> str:
    """Where a killed run was."""
    if run is None:
        return "loading"
    if not (run.folder / "before.json").exists() and not run.metrics():
        return "loading or answers before"
    if writing_a_checkpoint(run):
        return "writing a checkpoint"
    steps = [line["step"] for line in run.metrics()]
    if not steps:
        return "before the first step"
    if run.adapter.exists():
        return "answers after"
    return f"step {max(steps)}"


class Moment:
    """So many seconds after the command is started, or after it begins to work in the folder."""

    def __init__(self, world: World, output: Path, seconds: float, loading: bool) -> None:
        self.world, self.output, self.seconds = world, output, seconds
        self.began: float | None = time.monotonic() if loading else None
        self.before = self._written()

    def __call__(self) -> bool:
        if self.began is None and self._written() != self.before:
            self.began = time.monotonic()
        return self.began is not None and time.monotonic() - self.began >= self.seconds

    def _written(self) -> int:
        run = self.world.run(self.output)
        return 0 if run is None else (run.folder / "manifest.json").stat().st_mtime_ns


@pytest.mark.skipif(not LONG, reason="a quarter of an hour: make kill")
def test_twenty_kills_at_random_moments(world, unbroken):
    """Every fifth may come while the model is loaded, the others while the run is at work; every
    third run is killed again while it goes on."""
    chance = random.Random(int(os.environ.get("FASTTUNE_KILL_SEED", "1")))
    wanted = outcome(unbroken)
    began = time.monotonic()
    process = world.start(*SETTINGS, "-o", world.folder / "timed")
    while world.run(world.folder / "timed") is None and process.poll() is None:
        time.sleep(0.01)
    loading = time.monotonic() - began
    assert process.wait(300) == 0
    working = time.monotonic() - began - loading
    report = [f"loading {loading:.1f} s, then {working:.1f} s"]
    kills = trial = 0
    while kills < 20:
        output = world.folder / f"trial{trial}"
        for _ in range(2 if trial % 3 == 0 else 1):
            while_loading = kills % 5 == 4
            seconds = chance.uniform(0, loading if while_loading else working)
            moment = Moment(world, output, seconds, while_loading)
            resumed = world.run(output) is not None
            if kill_when(world.go_on(output), moment):
                kills += 1
                report.append(
                    f"kill {kills}: {'resumed' if resumed else 'new'} run, {seconds:.2f} s "
                    f"{'after the start' if while_loading else 'into the work'}: "
                    + hit(world.run(output))
                )
            elif not while_loading:
                working *= 0.8  # it was ready before; another load was on the machine when timed
        assert outcome(world.whole(output)) == wanted, report
        report.append(f"  run {trial + 1}: adapter, metrics and answers as unbroken")
        trial += 1
        if target := os.environ.get("FASTTUNE_KILL_REPORT"):
            Path(target).write_text("\n".join(report) + "\n")
