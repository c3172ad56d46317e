"""Measure answered rows per minute, with the same model and adapter, greedily:

pipeline  a loop that calls transformers' text-generation pipeline with one prompt
batches   transformers' `generate` on left-padded batches, in the order of the rows
fasttune  `Generator.answers`, as `fasttune answer` uses it

In bf16, greedy answers may differ where two tokens are close; the result counts those that equal
the pipeline's. The adapter is new, and costs the same time as a trained one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fasttune.benchmark.rounds import compare_rounds, run_rounds
from fasttune.encoding.encode import encode_prompt
from fasttune.formats.row import Row
from fasttune.generation.generator import Generator, Sampling
from fasttune.job import Job
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, load_base
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import import_unsloth

# isort: split
import torch
from transformers import pipeline

from fasttune.encoding.batches import left_pad

B_STD = 1e-3
"""Small enough that the answers stay as long as the base model's."""


def measure_generation(job: Job, rounds: int) -> dict[str, dict[str, Any]]:
    """Answer the rows of a job, `samples.batch_size` at a time with `samples.max_new_tokens`."""
    rows, samples = list(job.train), job.config.samples
    arms = _arms(_load_with_adapter(job), samples.batch_size, samples.max_new_tokens)
    for answer in arms.values():  # to warm up
        answer(rows[:2])
    seconds, texts = run_rounds({arm: partial(arms[arm], rows) for arm in arms}, rounds)
    figures = compare_rounds(seconds, len(rows))
    for arm, own in texts.items():
        same = sum(a == b for a, b in zip(texts["pipeline"], own, strict=True))
        figures[arm]["same_answers"] = same
    return figures


def _load_with_adapter(job: Job) -> Generator:
    choices = decide(job.config, this_device())
    tokenizer = load_tokenizer(job.model, job.template.end)
    model = load_base(job.config.model, choices, tokenizer)
    model, _ = add_lora(model, job.config.lora, job.config.seed, choices)
    torch.manual_seed(job.config.seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=B_STD)
    import_unsloth().for_inference(model)
    return Generator(model, tokenizer, job.template, choices)


def _arms(
    generator: Generator, batch_size: int, max_new_tokens: int
) -> dict[str, Callable[[Sequence[Row]], list[str]]]:
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
