"""Decoding and training beside other programs, by how many threads there are and how they wait.

    python tools/busy_machine.py [--rounds N] [--busy N ...] [--json]

Each arm is a process of its own with the demo model in bf16, and takes its turn while the others
wait: it decodes 16 tokens of one row, and trains on 8 rows of 100 tokens, in two packs side by side
where nothing is set. The other programs are loops of Python. Tokens per second, medians of the
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

ARMS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads": {"OMP_NUM_THREADS": str(os.cpu_count())},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "as fasttune does": {},
}
WORK = ("decode", "train")
NEW, ROWS, LENGTH = 16, 8, 100
LOOK = 1.5
"""Seconds of work before what counts: threads that follow have looked by then."""


class Arm:
    """The process of an arm; `turn` has it work and returns its tokens per second."""

    def __init__(self, settings: dict[str, str]) -> None:
        ours = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=kept | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.turn("nothing")

    def turn(self, work: str) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(work, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def worker() -> None:
    """Loads, then works as it is told on standard input."""
    told, sys.stdout = sys.stdout, sys.stderr
    import torch

    from fasttune.config import load_config
    from fasttune.encoding.batches import pack
    from fasttune.encoding.encode import Encoded, Span
    from fasttune.generation.generator import Generator
    from fasttune.machine import Threads, this_device, threads
    from fasttune.models.choices import decide
    from fasttune.models.fast.fast import speed_up
    from fasttune.models.head import decoder
    from fasttune.models.load import add_lora, load_base
    from fasttune.models.tokenizer import load_tokenizer
    from fasttune.models.unsloth import import_unsloth
    from fasttune.plugins.discovery import load_plugins
    from fasttune.training.side_by_side import SideBySide

    unsloth = import_unsloth()
    config = load_config(None, ["model.precision=bf16"])
    choices = decide(config, this_device())
    tokenizer = load_tokenizer(config.model.name)
    base = load_base(config.model, choices, tokenizer)
    model, _ = add_lora(base, config.lora, 1, choices)
    fast = speed_up(model, choices)
    generator = Generator(model, tokenizer, load_plugins().template("reasoning"), choices)
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH).tolist()
    rows = [Encoded(row, [Span("text", 0, LENGTH, train=True)], 0) for row in ids]
    side_by_side = 1 if set(Threads.SETTLED) & set(os.environ) else choices.side_by_side
    packs = [pack(rows[at::side_by_side], ["text"]) for at in range(side_by_side)]
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def decode() -> int:
        unsloth.for_inference(model)
        asked = "Count from 1 to 100, and write nothing else."
        return generator.answer(asked, max_new_tokens=NEW).tokens

    def gradients(batch: dict[str, Any]) -> Any:
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        inputs |= fast.row_inputs(batch["row_layout"])
        hidden = decoder(model)(**inputs, use_cache=False).last_hidden_state
        return torch.autograd.grad(hidden.float().square().mean(), weights)

    def train() -> int:
        unsloth.for_training(model)
        with threads().settled():
            done = [*SideBySide(side_by_side).map(gradients, packs)]
        return ROWS * LENGTH if done else 0

    def measured(work: Any) -> float:
        end = time.perf_counter() + LOOK
        while time.perf_counter() < end:
            work()
        began = time.perf_counter()
        tokens = work()
        return float(tokens / (time.perf_counter() - began))

    works = {"decode": decode, "train": train}
    for line in sys.stdin:
        found = measured(works[line.strip()]) if line.strip() in works else 0.0
        print(found, file=told, flush=True)


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many busy programs."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker()
        return
    with ExitStack() as stack:
        arms = {name: stack.enter_context(Arm(settings)) for name, settings in ARMS.items()}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in arms}
        for number in range(asked.rounds):
            for busy in asked.busy:
                turn = number % len(arms)
                order = [*arms][turn:] + [*arms][:turn]
                for work in WORK:
                    with others(busy):
                        for name in order:
                            speeds = found[name].setdefault(f"{work}, {busy} others", [])
                            speeds.append(arms[name].turn(work))
                            said = f"{name}: {work}, {busy} others: {speeds[-1]:.1f} tokens/s"
                            print(said, file=sys.stderr, flush=True)
            print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
    table = {name: {case: median(v) for case, v in cases.items()} for name, cases in found.items()}
    if asked.json:
        print(json.dumps(table))
        return
    cases = list(next(iter(table.values())))
    print("| | " + " | ".join(cases) + " |\n|---" + "|---:" * len(cases) + "|")
    for name, speeds in table.items():
        print(f"| {name} | " + " | ".join(f"{speeds[case]:.1f}" for case in cases) + " |")


if __name__ == "__main__":
    main()
