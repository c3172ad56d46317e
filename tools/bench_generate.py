"""Rows answered per minute: one by one through a pipeline, in batches, and by `Generator.answers`.

    python tools/bench_generate.py [--data FILE] [--run RUN | --model MODEL] [--precision fp32]

Three arms answer the same rows greedily with the same model and adapter, turn by turn:
    pipeline   a loop that calls transformers' text-generation pipeline with one prompt
    batches    transformers' `generate` on left-padded batches, in the order of the rows
    answers    what `fasttune generate --file` does
Their medians are printed, and how many rows got the text that the pipeline gave: in bf16 matrices
of other shapes are rounded otherwise, and where two tokens are close greedy answers part.
Without --run the adapter is fresh, with small random factors: it costs what a trained one costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median

from fasttune.config import LoraConfig, ModelConfig, RunConfig
from fasttune.data.load import load, shipped
from fasttune.encoding.encode import encode_prompt
from fasttune.generation.generator import Generator, Sampling
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, load_base
from fasttune.models.unsloth import FastLanguageModel
from fasttune.plugins.discovery import load_plugins
from fasttune.runs import find_run

# isort: split
import torch
from transformers import pipeline

from fasttune.encoding.batches import left_pad

B_STD = 1e-3
"""Small enough that a fresh adapter leaves the answers as long as the model's own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(shipped("heldout")))
    parser.add_argument("--template", default="reasoning")
    parser.add_argument("--model", help="default: what `fasttune run` would take")
    parser.add_argument("--run", help="a run, instead of a model with a fresh adapter")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    generator = load_generator(chosen)
    rows = load(chosen.data, generator.template, limit=chosen.rows).rows
    arms = make_arms(generator, rows, chosen.batch_size, chosen.max_new_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    texts: dict[str, list[str]] = {}
    for answer in arms.values():  # to warm up
        answer(rows[:2])
    for number in range(chosen.rounds):
        for name, answer in arms.items():
            start = time.perf_counter()
            texts[name] = answer(rows)
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr)
    report = {
        name: {
            "rows_per_minute": 60 * len(rows) / median(seconds[name]),
            "times_pipeline": median(
                a / b for a, b in zip(seconds["pipeline"], seconds[name], strict=True)
            ),
            "same_answers": sum(
                a == b for a, b in zip(texts["pipeline"], texts[name], strict=True)
            ),
            "seconds": seconds[name],
        }
        for name in arms
    }
    if chosen.json:
        print(json.dumps({"settings": {**vars(chosen), "rows": len(rows)}, "arms": report}))
        return
    print(f"{'':10}{'rows/min':>10}{'x pipeline':>12}{'same answers':>16}")
    for name, found in report.items():
        same = f"{found['same_answers']} of {len(rows)}"
        print(f"{name:10}{found['rows_per_minute']:10.1f}{found['times_pipeline']:12.2f}{same:>16}")


def load_generator(chosen: argparse.Namespace) -> Generator:
    if chosen.run:
        run = find_run(chosen.run)
        template = load_plugins().template(run.config.template)
        return Generator.load(run.model_config, template, run.adapter)
    config = ModelConfig(
        name=chosen.model, quantization=chosen.quantization, precision=chosen.precision
    )
    choices = decide(RunConfig(model=config), this_device())
    model, tokenizer = load_base(config, choices)
    model, _ = add_lora(model, LoraConfig(), 0, choices)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=B_STD)
    FastLanguageModel.for_inference(model)
    return Generator(model, tokenizer, load_plugins().template(chosen.template), choices)


Arm = Callable[[list[dict[str, str]]], list[str]]


def make_arms(
    generator: Generator, rows: list[dict[str, str]], batch_size: int, new: int
) -> dict[str, Arm]:
    model, tokenizer, template = generator.model, generator.tokenizer, generator.template
    sampling = Sampling(max_new_tokens=new)
    config = sampling.config(tokenizer)
    one = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def through_pipeline(rows: list[dict[str, str]]) -> list[str]:
        texts = []
        for row in rows:
            with generator.choices.autocasting(model.device.type):
                [result] = one(template.prompt(row), generation_config=config, return_tensors=True)
            ids = result["generated_token_ids"][len(encode_prompt(template, row, tokenizer)) :]
            texts.append(generator.read(row, ids).text)
        return texts

    @torch.inference_mode()
    def in_batches(rows: list[dict[str, str]]) -> list[str]:
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

    def by_answers(rows: list[dict[str, str]]) -> list[str]:
        return [answer.text for answer in generator.answers(rows, sampling, batch_size)]

    return {"pipeline": through_pipeline, "batches": in_batches, "answers": by_answers}


if __name__ == "__main__":
    main()
