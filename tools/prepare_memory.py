"""Measure the memory that preparing rows takes, from the file to what the trainer reads.

    python tools/prepare_memory.py 100000 1000000

For each number of synthetic rows, the largest resident memory of a process that prepares them, and
rows per second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_rows import write_rows


def prepare_one(file: Path, model: str | None) -> dict[str, float]:
    """Read, check, hash, render, tokenize and store the rows of a file, as `fasttune run` does."""
    from fasttune.config import load_config
    from fasttune.data.split import data_hash
    from fasttune.encoding.cache import encode_rows
    from fasttune.job import prepare
    from fasttune.models.tokenizer import load_tokenizer, resolve_model
    from fasttune.plugins.discovery import load_plugins

    name = resolve_model(model)
    settings = [("data.train", str(file)), ("data.eval_fraction", 0.0), ("model.name", name)]
    config, plugins, tokenizer = load_config(None, settings), load_plugins(), load_tokenizer(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    job = prepare(config, plugins)
    data_hash(job.train)
    rows = len(encode_rows(job.template, job.train, tokenizer, config, "training"))
    return {
        "rows": rows,
        "rows_per_second": rows / (time.perf_counter() - began),
        "start_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="*")
    parser.add_argument("--model", help="model whose tokenizer is used; default: this machine's")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(prepare_one(chosen.one, chosen.model)))
        return
    for count in chosen.rows:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            file = Path(name) / "rows.jsonl"
            write_rows(file, count)
            model = ["--model", chosen.model] if chosen.model else []
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(file), *model],
                env={**os.environ, "FASTTUNE_CACHE": name},
                stdout=subprocess.PIPE,
                check=True,
            )
            line = json.loads(done.stdout)
        print(
            f"{count:>10,} rows  peak {line['peak_mb']:.0f} MB (at the start "
            f"{line['start_mb']:.0f}), {line['rows_per_second']:.0f} rows/s"
        )


if __name__ == "__main__":
    main()
