"""Measure prepared rows per second, from the file to the trainer's input, against TRL:

trl, trl x2       `datasets.map` renders prompt and completion by the same template, then
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
from unittest.mock import patch

from fasttune.benchmark.rounds import compare_rounds, run_rounds
from fasttune.data.split import data_hash
from fasttune.encoding.cache import encode_rows
from fasttune.job import Job, prepare
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import hide_broken_torchvision

RowsAndTokens = tuple[int, int]
"""Numbers of prepared rows and tokens."""


def measure_preparation(job: Job, rounds: int) -> dict[str, dict[str, Any]]:
    """Prepare the rows of a job. TRL reads them from a file of JSON Lines."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    with (
        tempfile.TemporaryDirectory(prefix="fasttune-bench-") as cache,
        patch.dict(os.environ, FASTTUNE_CACHE=cache),
    ):
        file = Path(cache, "rows.jsonl")
        lines = (json.dumps(dict(row), ensure_ascii=False) for row in job.train)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        ours = _fasttune(job)
        arms = {
            "trl": _trl(job, None, file),
            "trl x2": _trl(job, 2, file),
            "fasttune": ours,
            "cached": ours,
        }

        def clear_cache() -> None:
            for path in Path(cache, "rows").glob("*"):
                path.unlink()

        seconds, prepared = run_rounds(arms, rounds, clear_cache)
    figures = compare_rounds(seconds, len(job.train))
    for arm, (_, tokens) in prepared.items():
        figures[arm]["tokens"] = tokens
    return figures


def _fasttune(job: Job) -> Callable[[], RowsAndTokens]:
    """Read, check, hash, render, tokenize and store the rows."""
    tokenizer = load_tokenizer(job.model, job.template.end)

    def arm() -> RowsAndTokens:
        again = prepare(job.config, job.plugins)
        data_hash(again.train)
        rows = encode_rows(again.template, again.train, tokenizer, again.config, "training")
        return len(rows), rows.tokens

    return arm


def _trl(job: Job, processes: int | None, file: Path) -> Callable[[], RowsAndTokens]:
    hide_broken_torchvision()
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job.model, trust_remote_code=False)
    arguments = SFTConfig(
        output_dir=str(file.parent), dataset_num_proc=processes, report_to="none", use_cpu=True,
        bf16=False, max_length=job.config.model.max_length,
    )  # fmt: skip
    # `_prepare_dataset` reads only these attributes of the trainer, so no model has to be loaded.
    trainer = SimpleNamespace(
        _tokenizer=tokenizer, _is_vlm=False, _is_vision_dataset=False, padding_free=False,
        args=arguments, chat_template=None, completion_only_loss=True,
    )  # fmt: skip

    def render(row: dict[str, str]) -> dict[str, str]:
        prompt = job.template.prompt(row)
        return {"prompt": prompt, "completion": job.template.render(row)[len(prompt) :]}

    def arm() -> RowsAndTokens:
        # `datasets.map` sets it to "false" when it starts processes.
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        with tempfile.TemporaryDirectory(dir=file.parent) as cache:
            rows = datasets.load_dataset(
                "json", data_files=str(file), split="train", cache_dir=cache
            )
            rows = rows.map(render, remove_columns=rows.column_names, num_proc=processes)
            prepared = SFTTrainer._prepare_dataset(
                trainer, rows, tokenizer, arguments, False, None, "train"
            )
            return len(prepared), sum(map(len, prepared["input_ids"]))

    return arm
