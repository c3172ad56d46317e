"""Assembling one training run: rows -> encoded rows -> TRL's SFTTrainer -> run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.models.unsloth import FastLanguageModel

# isort: split
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from fasttune.config import RunConfig
from fasttune.data.split import data_hash, spread
from fasttune.encoding.batches import Collator, trainer_dataset
from fasttune.encoding.cache import EncodedRows, encode_rows
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.generation.generator import Generator, Sampling
from fasttune.job import Prepared
from fasttune.machine import (
    Device,
    device_name,
    peak_memory,
    require_one_process,
    this_device,
    versions,
)
from fasttune.models.choices import Choices, decide
from fasttune.models.dropout import base_dropout
from fasttune.models.fast.fast import speed_up
from fasttune.models.head import check_head
from fasttune.models.load import add_lora, load_base
from fasttune.models.tokenizer import load_tokenizer
from fasttune.planning.forecast import foresee
from fasttune.plugins.identity import Identity
from fasttune.plugins.metric import Answer
from fasttune.plugins.registry import Plugins
from fasttune.plugins.template import Row
from fasttune.quiet import quiet
from fasttune.runs import Run, create_run, now
from fasttune.training.callbacks import Interrupt, Progress, RunLog
from fasttune.training.report import plot_losses, write_samples
from fasttune.training.settings import training_arguments
from fasttune.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        status: "done", or "interrupted" with a checkpoint to resume from.
        scores: metric -> value on the sample answers, "before" and "after".
    """

    run: Run
    status: str
    scores: dict[str, dict[str, float]]


def train(
    config: RunConfig,
    prepared: Prepared,
    plugins: Plugins,
    identity: Identity,
    resumed: Run | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
    device: Device | None = None,
) -> Outcome:
    """Train, evaluate and write the run folder, a new one unless a run is resumed.

    Args:
        device: what the choices are made for; by default this machine's.

    Raises:
        FasttuneError: the run does not fit this machine, the model cannot be loaded, or nothing is
            left to train on. Then there is no run folder.
    """
    template = prepared.template
    began = time.perf_counter()
    require_one_process()
    device = device or this_device()
    choices = decide(config, device)
    train_rows = encode_rows(
        prepared.train, template, load_tokenizer(prepared.model), config, "training", say
    )
    planned = foresee(config, prepared.model, train_rows.lengths, device, say)
    if planned is not None:
        planned.require_fit()
        choices = planned.choices
    say(f"choices: {choices}")
    model, tokenizer = load_base(config.model, choices)
    if off := base_dropout(model.config, config.model):
        say(off)
    eval_rows = encode_rows(prepared.eval, template, tokenizer, config, "held-out", say)
    model, coverage = add_lora(model, config.lora, config.seed, choices)
    say(str(coverage))
    run = resumed or create_run(config, prepared.model)
    run.update(
        {
            "status": "running",
            "template": identity.as_dict(),
            "system": config.system,
            "model": prepared.model,
            "quantization": choices.quantization,
            "dtype": choices.dtype,
            "choices": choices.as_dict(),
            "lora": {
                "layers": coverage.adapted,
                "left_out": coverage.left_out,
                "parameters": coverage.parameters,
            },
            "data": {
                "source": prepared.source,
                "train_sha256": data_hash(prepared.train),
                "eval_sha256": data_hash(prepared.eval),
                "train_rows": len(train_rows),
                "eval_rows": len(eval_rows),
                "train_tokens": train_rows.tokens,
            },
            "planned_memory_bytes": planned and round(planned.memory.peak),
            "versions": versions(),
            "device": device_name(),
        }
        | ({} if resumed else {"started": now()})
    )
    loading = time.perf_counter() - began
    generator = Generator(model, tokenizer, template, choices)
    try:
        return _train(
            config, prepared, plugins, identity, run, generator, train_rows, eval_rows, loading,
            show_progress, say,
        )  # fmt: skip
    except BaseException as error:
        run.update({"status": "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"})
        raise


def _train(
    config: RunConfig,
    prepared: Prepared,
    plugins: Plugins,
    identity: Identity,
    run: Run,
    generator: Generator,
    train_rows: EncodedRows,
    eval_rows: EncodedRows,
    loading: float,
    show_progress: bool,
    say: Callable[[str], None],
) -> Outcome:
    """From the loaded model with its fresh adapters to the finished run folder."""
    model, tokenizer, template = generator.model, generator.tokenizer, generator.template
    seconds = {"load": loading}
    checkpoint = run.last_checkpoint()
    sample_rows = spread(prepared.eval or prepared.train, config.samples.count)
    began = time.perf_counter()
    if checkpoint is None:
        if sample_rows:
            say(f"answering {len(sample_rows)} held-out rows before training")
        before = _answer(generator, sample_rows, config)
        write_json(run.folder / "before.json", [[a.text, a.stop, a.tokens] for a in before])
    else:
        before = _read_before(run, generator, sample_rows)
        run.forget_after(int(checkpoint.name.rpartition("-")[2]))
    seconds["samples_before"] = time.perf_counter() - began

    progress = Progress(quiet=not show_progress)
    interrupt = Interrupt()
    callbacks = [RunLog(run), progress, interrupt, *plugins.training_callbacks(run.folder)]
    if config.train.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.train.early_stopping))
    sections = list(dict.fromkeys([*train_rows.sections, *eval_rows.sections]))
    trainer = make_trainer(
        config, generator.choices, model, tokenizer, train_rows, eval_rows, sections, run,
        callbacks, progress,
    )  # fmt: skip
    say(f"training: {trainer.fast}")

    began = time.perf_counter()
    try:
        with interrupt:
            if eval_rows and checkpoint is None:
                trainer.evaluate()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finished = not interrupt.asked
            if eval_rows and finished and not _evaluated(run, trainer.state.global_step):
                trainer.evaluate()
    finally:
        progress.close()
    seconds["train"] = time.perf_counter() - began
    plot_losses(
        run.metrics(), run.folder / "loss.png", f"{template.name}, {Path(prepared.model).name}"
    )
    measured: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "tokens_per_second": round(progress.tokens_per_second, 1),
        "shared_tokens_saved": trainer.saved_tokens,
        "peak_memory_bytes": peak_memory(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    if trainer.state.best_metric is not None:
        measured["best_eval_loss"] = trainer.state.best_metric
    if not finished:
        run.update({"status": "interrupted", **measured})
        return Outcome(run, "interrupted", {})

    began = time.perf_counter()
    save_adapter(run, trainer.model, tokenizer, identity)
    scores: dict[str, dict[str, float]] = {}
    if sample_rows:
        say(f"answering {len(sample_rows)} held-out rows after training")
        after = _answer(generator, sample_rows, config)
        metrics = [metric for metric, _ in plugins.metrics.values()]
        scores = write_samples(run.folder, before, after, metrics)
    (run.folder / "before.json").unlink(missing_ok=True)
    measured["seconds"]["samples_after"] = round(time.perf_counter() - began, 1)
    run.update({"status": "done", "finished": now(), "scores": scores, **measured})
    return Outcome(run, "done", scores)


def make_trainer(
    config: RunConfig,
    choices: Choices,
    model: Any,
    tokenizer: Any,
    train_rows: Sequence[Encoded],
    eval_rows: Sequence[Encoded],
    sections: Sequence[str],
    run: Run,
    callbacks: Sequence[TrainerCallback],
    progress: Progress,
) -> Trainer:
    """The trainer of a run, ready to train.

    Args:
        sections: the names of the learned spans of all rows.
        model: with its fresh adapters; it is put into training mode and onto the fast path.
        run: where checkpoints and TensorBoard's files go; nothing is written yet.
        progress: counts the tokens; it is told of steps only if it is among the callbacks.

    Raises:
        FasttuneError: the architecture's loss is not known.
    """
    # Where transformers' TensorBoard callback writes; otherwise it takes ./runs, among our own.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "tensorboard")
    # Unsloth's words for with and without autocast. It would turn it on wherever a GPU has bf16.
    os.environ["UNSLOTH_MIXED_PRECISION"] = "float32" if choices.autocast else "bfloat16"
    FastLanguageModel.for_training(model)
    check_head(model)
    fast = speed_up(model, choices)
    with quiet():
        trainer = Trainer(
            model=model,
            args=training_arguments(config, run, bool(eval_rows), choices),
            train_dataset=trainer_dataset(train_rows, sections),
            eval_dataset=trainer_dataset(eval_rows, sections) if eval_rows else None,
            processing_class=tokenizer,
            data_collator=Collator(
                config.train.batch_size,
                config.model.max_length,
                packing=config.train.packing,
                share=fast.by_row,
                pad_id=tokenizer.pad_token_id,
            ),
            callbacks=list(callbacks),
            sections=sections,
            progress=progress,
            fast=fast,
        )
    trainer.remove_callback(PrinterCallback)
    precision = trainer.accelerator.mixed_precision
    if precision != choices.mixed_precision:
        raise FasttuneError(
            f"Unsloth set the mixed precision to {precision} instead of {choices.mixed_precision}",
            f"model.precision, on {choices.kind}",
            "this release of Unsloth is not supported: see fasttune doctor",
        )
    # TRL casts the adapters of a quantised model to bf16, which costs accuracy.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def save_adapter(run: Run, model: Any, tokenizer: Any, identity: Identity) -> None:
    """Write the adapter, its tokenizer and the template's identity."""
    with atomic_folder(run.adapter) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "template.json", identity.as_dict())


def _answer(generator: Generator, rows: Sequence[Row], config: RunConfig) -> list[Answer]:
    FastLanguageModel.for_inference(
        generator.model
    )  # turns the KV cache on, which training keeps off
    sampling = Sampling(max_new_tokens=config.samples.max_new_tokens)
    return list(generator.answers(rows, sampling, config.samples.batch_size))


def _read_before(run: Run, generator: Generator, rows: Sequence[Row]) -> list[Answer]:
    saved = json.loads((run.folder / "before.json").read_text(encoding="utf-8"))
    return [
        Answer(row, text, generator.template.parse(text), stop, tokens)
        for row, (text, stop, tokens) in zip(rows, saved, strict=True)
    ]


def _evaluated(run: Run, step: int) -> bool:
    return any("eval_loss" in line and line["step"] == step for line in run.metrics())
