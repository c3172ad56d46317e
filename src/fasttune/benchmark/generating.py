"""Rows answered per minute: one by one through a pipeline, in batches, and by `Generator.answers`.

Three arms answer the same rows greedily with the same model and adapter:
pipeline  a loop that calls transformers' text-generation pipeline with one prompt
batches   transformers' `generate` on left-padded batches, in the order of the rows
fasttune  what `fasttune generate --file` does
In bf16 matrices of other shapes are rounded otherwise, and where two tokens are close greedy
answers part; how many are the pipeline's is counted. The adapter is fresh, with small random
factors: it costs what a trained one costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fasttune.benchmark.folder import require_new
from fasttune.benchmark.rounds import figures, in_rounds, write_result
from fasttune.encoding.encode import encode_prompt
from fasttune.formats.row import Row
from fasttune.generation.generator import Generator, Sampling
from fasttune.job import Job
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, load_base
from fasttune.models.unsloth import import_unsloth
from fasttune.processes import require_one

# isort: split
import torch
from transformers import pipeline

from fasttune.encoding.batches import left_pad

B_STD = 1e-3
"""Small enough that a fresh adapter leaves the answers as long as the model's own."""


def bench_generate(job: Job, rounds: int, target: Path) -> tuple[Path, dict[str, Any]]:
    """Answer the rows of a job, `samples.batch_size` at a time with `samples.max_new_tokens`.

    Returns:
        The folder, and what bench.json holds.

    Raises:
        FasttuneError: the folder exists, the model cannot be loaded, or this is one of several
            processes.
    """
    require_one("a benchmark")
    require_new(target)
    rows, asked = list(job.train), job.config.samples
    generator = _with_adapter(job)
    arms = _arms(generator, asked.batch_size, asked.max_new_tokens)
    for answer in arms.values():  # to warm up
        answer(rows[:2])
    work = {name: partial(answer, rows) for name, answer in arms.items()}
    seconds, texts = in_rounds(work, rounds)
    result = figures(seconds, len(rows))
    for name, found in texts.items():
        same = sum(a == b for a, b in zip(texts["pipeline"], found, strict=True))
        result[name]["same_answers"] = same
    return target, write_result("generate", job, len(rows), result, target)


def _with_adapter(job: Job) -> Generator:
    choices = decide(job.config, this_device())
    model, tokenizer = load_base(job.config.model, choices)
    model, _ = add_lora(model, job.config.lora, job.config.seed, choices)
    torch.manual_seed(job.config.seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=B_STD)
    import_unsloth().for_inference(model)
    return Generator(model, tokenizer, job.template, choices)


def _arms(
    generator: Generator, batch_size: int, new: int
) -> dict[str, Callable[[Sequence[Row]], list[str]]]:
    model, tokenizer, template = generator.model, generator.tokenizer, generator.template
    sampling = Sampling(max_new_tokens=new)
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
            part = rows[start : start + batch_size]
            inputs = left_pad([encode_prompt(template, row, tokenizer) for row in part])
            on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with generator.choices.autocasting(model.device.type):
                output = model.generate(**on_device, generation_config=config)
            new_ids = output[:, inputs["input_ids"].shape[1] :].tolist()
            texts += [generator.read(row, ids).text for row, ids in zip(part, new_ids, strict=True)]
        return texts

    def by_answers(rows: Sequence[Row]) -> list[str]:
        return [answer.text for answer in generator.answers(rows, sampling, batch_size)]

    return {"pipeline": through_pipeline, "batches": in_batches, "fasttune": by_answers}
