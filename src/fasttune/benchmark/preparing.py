"""Rows prepared per second, from the file to what a trainer reads, against TRL's own preparation.

trl, trl x2       prompt and completion rendered by the same template with `datasets.map`, then
                  `SFTTrainer._prepare_dataset`, in one process and in two, without a cache
fasttune, cached  what `fasttune run` does before it trains, without its cache and with it
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fasttune.benchmark.folder import require_new
from fasttune.benchmark.rounds import figures, in_rounds, write_result
from fasttune.data.split import data_hash
from fasttune.encoding.cache import encode_rows
from fasttune.job import Job, prepare
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import hide_broken_torchvision
from fasttune.processes import require_one

Counts = tuple[int, int]
"""Rows and tokens."""


def bench_prepare(job: Job, rounds: int, target: Path) -> tuple[Path, dict[str, Any]]:
    """Prepare the rows of a job; TRL reads them from a file of JSON Lines.

    Returns:
        The folder, and what bench.json holds.

    Raises:
        FasttuneError: the folder exists, or this is one of several processes.
    """
    require_one("a benchmark")
    require_new(target)
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    cache = os.environ.get("FASTTUNE_CACHE")
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as name:
        folder = Path(name)
        os.environ["FASTTUNE_CACHE"] = name
        try:
            ours, file = _fasttune(job), folder / "rows.jsonl"
            lines = (json.dumps(dict(row), ensure_ascii=False) for row in job.train)
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            arms = {
                "trl": _trl(job, None, file),
                "trl x2": _trl(job, 2, file),
                "fasttune": ours,
                "cached": ours,
            }

            def forget() -> None:
                for path in (folder / "rows").glob("*"):
                    path.unlink()

            seconds, counted = in_rounds(arms, rounds, forget)
        finally:
            if cache is None:
                del os.environ["FASTTUNE_CACHE"]
            else:
                os.environ["FASTTUNE_CACHE"] = cache
    result = figures(seconds, len(job.train))
    for arm, (_, tokens) in counted.items():
        result[arm]["tokens"] = tokens
    return target, write_result("prepare", job, len(job.train), result, target)


def _fasttune(job: Job) -> Callable[[], Counts]:
    """Read, check, hash, render, tokenize, store."""
    tokenizer = load_tokenizer(job.model)

    def arm() -> Counts:
        again = prepare(job.config, job.plugins)
        data_hash(again.train)
        rows = encode_rows(again.template, again.train, tokenizer, again.config, "training")
        return len(rows), rows.tokens

    return arm


def _trl(job: Job, processes: int | None, file: Path) -> Callable[[], Counts]:
    hide_broken_torchvision()
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=False)
    arguments = SFTConfig(
        output_dir=str(file.parent), dataset_num_proc=processes, report_to="none", use_cpu=True,
        bf16=False, max_length=job.config.model.max_length,
    )  # fmt: skip
    # `_prepare_dataset` reads no more of the trainer than this; so no model has to be loaded.
    trainer = SimpleNamespace(
        _tokenizer=tokenizer, _is_vlm=False, _is_vision_dataset=False, padding_free=False,
        args=arguments, chat_template=None, completion_only_loss=True,
    )  # fmt: skip

    def render(row: dict[str, str]) -> dict[str, str]:
        prompt = job.template.prompt(row)
        return {"prompt": prompt, "completion": job.template.render(row)[len(prompt) :]}

    def arm() -> Counts:
        # `datasets.map` with processes leaves it at "false" for the rest of the program.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        with tempfile.TemporaryDirectory(dir=file.parent) as cache:
            rows = datasets.load_dataset(
                "json", data_files=str(file), split="train", cache_dir=cache
            )
            rows = rows.map(render, remove_columns=rows.column_names, num_proc=processes)
            done = SFTTrainer._prepare_dataset(
                trainer, rows, tokenizer, arguments, False, None, "train"
            )
            return len(done), sum(map(len, done["input_ids"]))

    return arm
