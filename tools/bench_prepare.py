"""Measure preparing rows, from the file to what the trainer reads: speed against TRL, and memory.

    python tools/bench_prepare.py --data rows.jsonl --rows 2000
    python tools/bench_prepare.py --memory 100000 1000000

Speed: rows per second of TRL's own preparation of the same texts (prompt and completion rendered by
the same template with `datasets.map`, then `SFTTrainer._prepare_dataset`), in one process and in
two; of fasttune without and with its cache. All in turn, as often as --rounds says; medians.
Memory: the largest resident memory of a process that prepares so many synthetic rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from make_rows import write_rows

HERE = Path(__file__).parent


def fasttune_arm(
    file: Path, template: str, model: str, limit: int | None
) -> Callable[[], tuple[int, int]]:
    """What `fasttune run` does before it trains: read, check, hash, render, tokenize, store.
    Gives the number of rows and of tokens."""
    from fasttune.config import load_config
    from fasttune.data.split import data_hash
    from fasttune.encoding.cache import encode_rows
    from fasttune.job import prepare
    from fasttune.models.tokenizer import load_tokenizer
    from fasttune.plugins.discovery import load_plugins

    settings = [
        ("template", template), ("data.train", str(file)), ("data.eval_fraction", 0.0),
        ("model.name", model), *([("data.limit", limit)] if limit else []),
    ]  # fmt: skip
    config = load_config(None, settings)
    plugins = load_plugins()
    tokenizer = load_tokenizer(model)

    def arm() -> tuple[int, int]:
        job = prepare(config, plugins)
        data_hash(job.train)
        rows = encode_rows(job.train, tokenizer, config, "training")
        return len(rows), rows.tokens

    return arm


def trl_arm(
    file: Path, template: str, model: str, limit: int | None, processes: int | None, folder: Path
) -> Callable[[], tuple[int, int]]:
    """Load, render with `datasets.map`, and let TRL prepare the data set, without any cache."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from fasttune.plugins.discovery import load_plugins

    format = load_plugins().template(template)
    tokenizer = AutoTokenizer.from_pretrained(model)
    arguments = SFTConfig(
        output_dir=str(folder), dataset_num_proc=processes, max_length=1024, report_to="none",
        use_cpu=True, bf16=False,
    )  # fmt: skip
    # `_prepare_dataset` reads no more of the trainer than this; so no model has to be loaded.
    trainer = SimpleNamespace(
        _tokenizer=tokenizer, _is_vlm=False, _is_vision_dataset=False, padding_free=False,
        args=arguments, chat_template=None, completion_only_loss=True,
    )  # fmt: skip

    def render(row: dict[str, str]) -> dict[str, str]:
        prompt = format.prompt(row)
        return {"prompt": prompt, "completion": format.render(row)[len(prompt) :]}

    def arm() -> tuple[int, int]:
        datasets.disable_caching()
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            rows = datasets.load_dataset(
                "json", data_files=str(file), split="train", cache_dir=cache
            )
            rows = rows.select(range(min(limit or len(rows), len(rows))))
            rows = rows.map(render, remove_columns=rows.column_names, num_proc=processes)
            done = SFTTrainer._prepare_dataset(
                trainer, rows, tokenizer, arguments, False, None, "train"
            )
            return len(done), sum(map(len, done["input_ids"]))

    return arm


def speed(file: Path, template: str, model: str, limit: int | None, rounds: int) -> dict[str, Any]:
    """Rows per second of every arm, in turn; medians over the rounds."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        os.environ["FASTTUNE_CACHE"] = name
        ours = fasttune_arm(file, template, model, limit)
        arms = {
            "TRL, 1 process": trl_arm(file, template, model, limit, None, folder),
            "TRL, 2 processes": trl_arm(file, template, model, limit, 2, folder),
            "fasttune": ours,
            "fasttune, cached": ours,
        }
        taken: dict[str, list[float]] = {arm: [] for arm in arms}
        counted: dict[str, tuple[int, int]] = {}
        for _ in range(rounds):
            for path in (folder / "rows").glob("*"):
                path.unlink()
            for label, arm in arms.items():
                # `datasets.map` with processes leaves it at "false" for the rest of the program.
                os.environ["TOKENIZERS_PARALLELISM"] = "true"
                began = time.perf_counter()
                counted[label] = arm()
                taken[label].append(counted[label][0] / (time.perf_counter() - began))
    return {
        label: {
            "rows": counted[label][0],
            "tokens": counted[label][1],
            "rows_per_second": statistics.median(found),
            "all": found,
            "ratio": statistics.median(
                [one / base for one, base in zip(found, taken["TRL, 1 process"], strict=True)]
            ),
        }
        for label, found in taken.items()
    }


def memory(counts: list[int], template: str, model: str) -> dict[str, Any]:
    """Peak resident memory in MB and rows per second for each number of rows."""
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            file = Path(name) / "rows.jsonl"
            write_rows(file, count)
            command = [sys.executable, __file__, "--one", str(file), "--template", template]
            done = subprocess.run(
                [*command, "--model", model],
                env={**os.environ, "FASTTUNE_CACHE": name},
                stdout=subprocess.PIPE,
                check=True,
            )
            found[str(count)] = json.loads(done.stdout)
    return found


def one(file: Path, template: str, model: str) -> dict[str, float]:
    arm = fasttune_arm(file, template, model, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    rows, tokens = arm()
    return {
        "rows": rows,
        "tokens": tokens,
        "rows_per_second": rows / (time.perf_counter() - began),
        "start_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="rows to measure the speed on")
    parser.add_argument("--rows", type=int, help="no more than this many of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--template", default="reasoning")
    parser.add_argument("--model", help="model whose tokenizer is used; default: this machine's")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    from fasttune.models.tokenizer import resolve_model

    model = resolve_model(chosen.model)
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.template, model)))
        return
    found: dict[str, Any] = {}
    if chosen.data:
        found["speed"] = speed(chosen.data, chosen.template, model, chosen.rows, chosen.rounds)
    if chosen.memory:
        found["memory"] = memory(chosen.memory, chosen.template, model)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for label, line in found.get("speed", {}).items():
        print(
            f"{label:<18} {line['rows_per_second']:8.0f} rows/s  x{line['ratio']:.2f}"
            f"  ({line['rows']} rows, {line['tokens']} tokens)"
        )
    for count, line in found.get("memory", {}).items():
        print(
            f"{int(count):>10,} rows  peak {line['peak_mb']:.0f} MB "
            f"(at the start {line['start_mb']:.0f}), {line['rows_per_second']:.0f} rows/s"
        )


if __name__ == "__main__":
    main()
