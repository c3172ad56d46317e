"""One run in two processes, as a launcher starts them, against the same run in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fasttune import processes
from fasttune.errors import FasttuneError
from fasttune.runs import Run
from tests.conftest import cli, rows, write_rows

pytestmark = pytest.mark.slow

DRIVER = """
import json, os, signal, sys
import fasttune.training.callbacks as callbacks
from fasttune.cli import main

def press(self, args, state, control, **kwargs):
    began(self, args, state, control, **kwargs)
    if state.global_step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as a launcher passes it on

began, callbacks.Progress.on_step_begin = callbacks.Progress.on_step_begin, press
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        print(f"process {os.environ['RANK']} ended with {ended.code or 0}", flush=True)
    callbacks.Progress.on_step_begin = began
"""


def settings(model: Path, folder: Path, *more: str) -> list[str]:
    """Nine steps of four rows over 21 rows: the sixth has one row alone."""
    return [
        "run", "--data", str(folder / "rows.jsonl"), f"data.eval={folder / 'held-out.jsonl'}",
        "--model", str(model), "model.quantization=none", "model.precision=fp32",
        "train.max_steps=9", "train.eval_steps=4", "train.save_steps=100", "train.batch_size=2",
        "train.warmup_steps=0", "train.learning_rate=1e-3", "lora.r=4", "samples.count=2",
        "samples.max_new_tokens=4", *more,
    ]  # fmt: skip


def weights(run: Run) -> torch.Tensor:
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_two_processes_train_as_one_with_doubled_accumulation(tiny_llama, tmp_path):
    """Interrupted in the second process, resumed by both: one run folder, one log, one voice."""
    write_rows(tmp_path / "rows.jsonl", rows(21))
    write_rows(tmp_path / "held-out.jsonl", rows(30)[21:])
    (tmp_path / "driver.py").write_text(DRIVER)
    pair = [settings(tiny_llama, tmp_path), ["run", "--resume", "last"]]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "driver.py", json.dumps(pair)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    [folder] = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert "process 0 ended with 130" in ended.stdout and "process 1 ended with 0" in ended.stdout
    assert ended.stderr.count("stopping after this step") == 0  # the second process is silent
    assert ended.stderr.count("interrupted; resume it") == 1
    assert ended.stdout.count("before training") == 2 and ended.stderr.count("choices: ") == 2

    arguments = settings(tiny_llama, tmp_path, "train.gradient_accumulation=2")
    assert cli(*arguments, "--output", tmp_path / "alone").status == 0
    [alone] = map(Run, (tmp_path / "alone").iterdir())
    manifest = run.manifest
    assert (manifest["status"], manifest["processes"], manifest["steps"]) == ("done", 2, 9)
    assert alone.manifest["processes"] == 1
    assert len(run.metrics()) == len(alone.metrics()) == 9 + 4
    for one, other in zip(run.metrics(), alone.metrics(), strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        for key, value in one.items():
            if "loss" in key or key in ("grad_norm", "learning_rate", "eval_tokens"):
                assert value == pytest.approx(other[key], abs=1e-5), (one["step"], key)
    assert torch.allclose(weights(run), weights(alone), atol=2e-5)
    assert len(json.loads((run.folder / "samples.json").read_text())["samples"]) == 2
    assert [path.name for path in sorted(run.checkpoints.glob("check*"))] == [
        "checkpoint-4",
        "checkpoint-9",
    ]
    assert (run.checkpoints / "checkpoint-4" / "rng_state_1.pth").is_file()


def test_a_launcher_that_divides_the_model_is_refused(tiny_llama, tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "rows.jsonl", rows(21))
    write_rows(tmp_path / "held-out.jsonl", rows(3))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert cli(*settings(tiny_llama, tmp_path), "--output", tmp_path / "runs").status == 2
    said = capsys.readouterr().err
    assert "a run does not divide the model by FSDP: each GPU has all of it" in said
    assert "where: ACCELERATE_USE_FSDP=true" in said and not (tmp_path / "runs").exists()


def test_another_process_is_silent_until_they_have_met(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    assert cli("run", "--data", "nowhere.jsonl").status == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(processes, "connected", True)
    assert processes.speaks(FasttuneError("", "", ""))
    assert not processes.speaks(processes.Gone("", "", ""))
    monkeypatch.setenv("RANK", "0")
    assert processes.speaks(processes.Gone("", "", ""))


def test_python_m_fasttune_is_the_command():
    shown = subprocess.run(
        [sys.executable, "-m", "fasttune", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("fasttune ")
