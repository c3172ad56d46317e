"""Both ends of the pipe between a benchmark and its arms, and what goes through it.

The benchmark sends lines of JSON, `{"steps": n}`. An arm answers with lines of JSON:
`{"parameters": n}` when its model is loaded, `{"seconds": s, "loss": l}` for each step,
`{"peak_memory": bytes}` at the end, or `{"error": [message, where, hint]}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from fasttune.config import RunConfig, load_config
from fasttune.encoding.encode import Encoded, Span
from fasttune.errors import FasttuneError
from fasttune.files import write_json
from fasttune.machine import tensor_device

LAST_LINES = 8
"""Of what an arm wrote before it ended, for the error."""


@dataclass(frozen=True)
class Spec:
    """What every arm is given.

    Attributes:
        config: of the run, with no setting left at "auto".
        rows: encoded, in the order of training; whole steps only.
        steps: optimiser steps.
        notebook_checkpointing: whether the Unsloth arm checkpoints as its notebooks do, whatever
            the config says.
    """

    config: RunConfig
    rows: list[Encoded]
    steps: int
    notebook_checkpointing: bool = False

    def write(self, file: Path) -> None:
        write_json(file, {**asdict(self), "config": self.config.as_dict()})

    @classmethod
    def read(cls, file: Path) -> Spec:
        values = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            Encoded(**{**row, "spans": [Span(*s) for s in row["spans"]]}) for row in values["rows"]
        ]
        config = load_config(overrides=list(values["config"].items()))
        return cls(config, rows, values["steps"], values["notebook_checkpointing"])


class Pace:
    """Takes steps only when told to, and tells how long each took.

    A step lasts from the go-ahead, or the end of the one before, to the moment its loss is known
    after the optimiser's update: fetching and padding the rows is part of it. An arm that waits is
    blocked on a read and needs no processor.
    """

    def __init__(self, commands: TextIO, reports: TextIO) -> None:
        self._commands, self._reports = commands, reports
        self._left = 0
        self._began = 0.0

    def tell(self, **values: Any) -> None:
        self._reports.write(json.dumps(values) + "\n")
        self._reports.flush()

    def ready(self, parameters: int) -> None:
        """The model is loaded and has so many trainable parameters; wait for the first go-ahead."""
        self.tell(parameters=parameters)
        self._wait()

    def step(self, loss: float) -> None:
        """A step is done, with this mean loss per learned token."""
        if tensor_device() == "cuda":
            torch.cuda.synchronize()
        self.tell(seconds=time.perf_counter() - self._began, loss=loss)
        self._left -= 1
        if not self._left:
            self._wait()  # after the last step, too: its clearing up would slow the others
        self._began = time.perf_counter()

    def _wait(self) -> None:
        line = self._commands.readline()
        if not line:
            raise SystemExit  # the benchmark is gone
        self._left = json.loads(line)["steps"]
        self._began = time.perf_counter()


class Worker:
    """The benchmark's end: the process of one arm, which is killed when the block ends.

    Raises:
        FasttuneError: the arm ended before it was done.
    """

    def __init__(self, arm: str, spec_file: Path) -> None:
        self.arm = arm
        self._log = spec_file.parent / f"{arm}.log"
        # As many threads for every arm, all the time.
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fasttune.benchmark.arms", arm, str(spec_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=threads,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> dict[str, Any]:
        """What the arm tells next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            what, where, hint = message["error"]
            raise FasttuneError(f"the {self.arm} arm failed: {what}", where, hint)
        return message

    def _ended(self) -> FasttuneError:
        status = self._process.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return FasttuneError(
            f"the {self.arm} arm ended before it was done (exit status {status})",
            "\n".join(lines[-LAST_LINES:]),
            "see its last lines above; --arms can leave it out",
        )
