"""The result folder of a benchmark, and benchmarks that run every arm once per round in this
process: answering and preparing rows."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import torch

from fasttune.data.split import data_hash
from fasttune.encoding.cache import encode_rows
from fasttune.encoding.encode import encode_prompt
from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.formats.row import Row
from fasttune.job import Job, prepare
from fasttune.machine import device_name, this_device, versions
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, load_base
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import hide_broken_torchvision, import_unsloth
from fasttune.processes import require_one

if TYPE_CHECKING:
    from fasttune.generation.generator import Generator

log = logging.getLogger(__name__)

T = TypeVar("T")


def result_folder(target: Path | None, what: str, job: Job) -> Path:
    """Choose the result folder: `target`, or one below bench/ named after the job and the time. One
    that exists is refused, and so are several processes."""
    require_one("a benchmark")
    if target is None:
        words = (what, job.template.name, Path(job.model).name)
        return Path("bench") / f"{'-'.join(words)}-{datetime.now():%Y%m%d-%H%M%S}"
    if target.exists():
        raise FasttuneError("the result folder exists", str(target), "choose another with --output")
    return target


def circumstances(job: Job) -> dict[str, Any]:
    """What bench.json of any benchmark says of the job and the machine."""
    return {
        "template": job.template.name,
        "model": job.model,
        "device": device_name(),
        "versions": versions(),
    }


def bench_rounds(
    what: str, job: Job, rounds: int, target: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Measure several arms with the rows of a job, and write the result.

    Args:
        what: "generate" or "prepare".
        target: see `result_folder`, also for errors.

    Returns:
        The folder and the content of bench.json.
    """
    target = result_folder(target, what, job)
    measure = measure_generation if what == "generate" else measure_preparation
    result = {
        "what": what,
        **circumstances(job),
        "data": {"source": job.source, "rows": len(job.train)},
        "arms": measure(job, rounds),
        "config": job.config.as_dict(),
    }
    with atomic_folder(target) as folder:
        write_json(folder / "bench.json", result)
    return target, result


def run_rounds(
    arms: Mapping[str, Callable[[], T]],
    rounds: int,
    before_round: Callable[[], None] = lambda: None,
) -> tuple[dict[str, list[float]], dict[str, T]]:
    """Run every arm once in each round, after `before_round`, which is not timed.

    Returns:
        The seconds of each arm, and its last result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, T] = {}
    for number in range(rounds):
        before_round()
        for name, work in arms.items():
            start = time.perf_counter()
            results[name] = work()
            seconds[name].append(time.perf_counter() - start)
            log.info(f"round {number + 1}/{rounds}  {name} {seconds[name][-1]:.1f} s")
    return seconds, results


def compare_rounds(seconds: Mapping[str, list[float]], rows: int) -> dict[str, dict[str, Any]]:
    """Compute the medians of each arm's rows per second, and of its speedup over the first arm in
    the same round."""
    reference = next(iter(seconds.values()))
    return {
        name: {
            "rows_per_second": rows / median(own),
            "speedup": median(a / b for a, b in zip(reference, own, strict=True)),
            "seconds": own,
        }
        for name, own in seconds.items()
    }


def measure_generation(job: Job, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure answered rows per second, with the same model and adapter, greedily:

    pipeline  a loop that calls transformers' text-generation pipeline with one prompt
    batches   transformers' `generate` on left-padded batches, in the order of the rows
    fasttune  `Generator.answers`, as `fasttune answer` uses it

    In bf16, greedy answers may differ where two tokens are close; the result counts those that
    equal the pipeline's.
    """
    import_unsloth()  # before transformers and PEFT
    rows, samples = list(job.train), job.config.samples
    arms = _generating_arms(_load_with_adapter(job), samples.batch_size, samples.max_new_tokens)
    for answer in arms.values():  # to warm up
        answer(rows[:2])
    seconds, texts = run_rounds({arm: partial(arms[arm], rows) for arm in arms}, rounds)
    figures = compare_rounds(seconds, len(rows))
    for arm, own in texts.items():
        same = sum(a == b for a, b in zip(texts["pipeline"], own, strict=True))
        figures[arm]["same_answers"] = same
    return figures


def _load_with_adapter(job: Job) -> Generator:
    """Load the model with a new adapter, which costs the same time as a trained one."""
    from fasttune.generation.generator import Generator

    choices = decide(job.config, this_device())
    tokenizer = load_tokenizer(job.model, job.template.end)
    model = load_base(job.config.model, choices, tokenizer)
    model, _ = add_lora(model, job.config.lora, job.config.seed, choices)
    torch.manual_seed(job.config.seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)  # answers keep their length
    import_unsloth().for_inference(model)
    return Generator(model, tokenizer, job.template, choices)


def _generating_arms(
    generator: Generator, batch_size: int, max_new_tokens: int
) -> dict[str, Callable[[Sequence[Row]], list[str]]]:
    from transformers import pipeline

    from fasttune.encoding.batches import left_pad
    from fasttune.sampling import Sampling

    model, tokenizer, template = generator.model, generator.tokenizer, generator.template
    sampling = Sampling(max_new_tokens=max_new_tokens)
    config = sampling.config(tokenizer)
    one = pipeline("text-generation", model=model, tokenizer=tokenizer, trust_remote_code=False)

    def through_pipeline(rows: Sequence[Row]) -> list[str]:
        texts = []
        for row in rows:
            with generator.choices.autocasting(model.device.type):
                [result] = one(generator.prompt(row), generation_config=config, return_tensors=True)
            ids = result["generated_token_ids"][len(encode_prompt(template, row, tokenizer)) :]
            texts.append(generator.read(row, ids).text)
        return texts

    @torch.inference_mode()
    def in_batches(rows: Sequence[Row]) -> list[str]:
        texts = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            inputs = left_pad([encode_prompt(template, row, tokenizer) for row in batch])
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with generator.choices.autocasting(model.device.type):
                output = model.generate(**inputs, generation_config=config)
            new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
            answers = map(generator.read, batch, new_ids)
            texts += [answer.text for answer in answers]
        return texts

    def by_fasttune(rows: Sequence[Row]) -> list[str]:
        return [answer.text for answer in generator.answers(rows, sampling, batch_size)]

    return {"pipeline": through_pipeline, "batches": in_batches, "fasttune": by_fasttune}


def measure_preparation(job: Job, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure prepared rows per second, from the file to the trainer's input, against TRL:

    trl, trl x2       `datasets.map` renders prompt and completion by the same template, then
                      `SFTTrainer._prepare_dataset`, in one process and in two, without a cache
    fasttune, cached  what `fasttune run` does before it trains, without its cache and with it
    """
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
        ours = _prepare_with_fasttune(job)
        arms = {
            "trl": _prepare_with_trl(job, None, file),
            "trl x2": _prepare_with_trl(job, 2, file),
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


def _prepare_with_fasttune(job: Job) -> Callable[[], tuple[int, int]]:
    """Read, check, hash, render, tokenize and store the rows."""
    tokenizer = load_tokenizer(job.model, job.template.end)

    def arm() -> tuple[int, int]:
        again = prepare(job.config, job.plugins)
        data_hash(again.train)
        rows = encode_rows(again.template, again.train, tokenizer, again.config, "training")
        return len(rows), rows.tokens

    return arm


def _prepare_with_trl(job: Job, processes: int | None, file: Path) -> Callable[[], tuple[int, int]]:
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

    def arm() -> tuple[int, int]:
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
