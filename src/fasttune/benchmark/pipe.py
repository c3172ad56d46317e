"""Both ends of the pipe between a benchmark and its arms.

The benchmark sends lines of JSON, `{"steps": n}`. An arm answers with lines of JSON:
`{"parameters": n}` once its model is loaded, `{"seconds": s, "loss": l}` for each step,
`{"peak_memory": bytes}` at the end, or `{"error": [message, where, hint]}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec
import torch

from fasttune.config import RunConfig
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.machine import tensor_device

LAST_LINES = 8
"""Lines of an arm's log that the error shows if the arm ends early."""


@dataclass(frozen=True)
class Spec:
    """The task of every arm.

    Attributes:
        config: of the run, with no setting left at "auto".
        rows: encoded, in the order of training; whole steps only.
        steps: optimiser steps.
        notebook_checkpointing: the Unsloth arm checkpoints as Unsloth's notebooks do, whatever the
            config says.
    """

    config: RunConfig
    rows: list[Encoded]
    steps: int
    notebook_checkpointing: bool = False

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, file: Path) -> Spec:
        return msgspec.json.decode(file.read_bytes(), type=cls)


class Pace:
    """The arm's end: takes steps only when told to, and reports the time of each.

    A step lasts from the command, or the end of the previous step, to its loss after the
    optimiser's update. It includes fetching and padding the rows. A waiting arm is blocked on a
    read and uses no processor.
    """

    def __init__(self, commands: TextIO, reports: TextIO) -> None:
        self._commands, self._reports = commands, reports
        self._steps_left = 0
        self._start = 0.0

    def report(self, **values: Any) -> None:
        self._reports.write(json.dumps(values) + "\n")
        self._reports.flush()

    def ready(self, parameters: int) -> None:
        """Report the number of trainable parameters of the loaded model; wait for a command."""
        self.report(parameters=parameters)
        self._wait()

    def step(self, loss: float) -> None:
        """Report a finished step with its mean loss per learned token."""
        if tensor_device() == "cuda":
            torch.cuda.synchronize()
        self.report(seconds=time.perf_counter() - self._start, loss=loss)
        self._steps_left -= 1
        if not self._steps_left:
            self._wait()  # after the last step too, since cleaning up would slow the other arms
        self._start = time.perf_counter()

    def _wait(self) -> None:
        line = self._commands.readline()
        if not line:
            raise SystemExit  # the benchmark has ended
        self._steps_left = json.loads(line)["steps"]
        self._start = time.perf_counter()


class Worker:
    """The benchmark's end: the process of one arm. Leaving the `with` block kills it."""

    def __init__(self, arm: str, spec_file: Path) -> None:
        self.arm = arm
        self._log = spec_file.parent / f"{arm}.log"
        # The number of threads is the same for every arm, all the time.
        environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fasttune.benchmark.arms", arm, str(spec_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=environment,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, **command: Any) -> None:
        """Send a command.

        Raises:
            FasttuneError: the arm has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """Wait for the arm's next report.

        Raises:
            FasttuneError: the arm failed or has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        report: dict[str, Any] = json.loads(line)
        if "error" in report:
            message, where, hint = report["error"]
            raise FasttuneError(f"the {self.arm} arm failed: {message}", where, hint)
        return report

    def _ended(self) -> FasttuneError:
        status = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return FasttuneError(
            f"the {self.arm} arm ended early (exit status {status})",
            "\n".join(lines[-LAST_LINES:]),
            "see the last lines of its log above; --arms can leave the arm out",
        )
