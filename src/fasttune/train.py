"""Assembling one training run: rows -> encoded rows -> TRL's SFTTrainer -> run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttune.models.backend import DEVICE, FastLanguageModel

# isort: split
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback
from trl import SFTConfig

from fasttune.config import RunConfig
from fasttune.data import data_hash
from fasttune.errors import FasttuneError
from fasttune.files import atomic_folder, write_json
from fasttune.generate import Generator, Sampling
from fasttune.machine import device_name, peak_memory, versions
from fasttune.metrics import Answer
from fasttune.models.load import add_lora, load_base, resolve_precision
from fasttune.packing import features, pack, pad, section_names
from fasttune.plan import Prepared, encode_rows
from fasttune.plugins import Identity, Plugins
from fasttune.progress import Progress
from fasttune.quiet import quiet
from fasttune.report import plot_losses, write_samples
from fasttune.runs import Run, now
from fasttune.template import Row
from fasttune.trainer import Interrupt, RunLog, Trainer


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
    run: Run,
    resume: bool = False,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train, evaluate and write the run folder.

    Raises:
        FasttuneError: the model cannot be loaded, or nothing is left to train on.
    """
    template = prepared.template
    began = time.perf_counter()
    seconds: dict[str, float] = {}
    checkpoint = run.last_checkpoint() if resume else None
    checkpointing = _checkpointing(config)
    model, tokenizer = load_base(config.model, checkpointing)
    train_rows = encode_rows(prepared.train, template, tokenizer, config, "training", say)
    eval_rows = encode_rows(prepared.eval, template, tokenizer, config, "held-out", say)
    model, coverage = add_lora(model, config.lora, config.seed, checkpointing)
    say(str(coverage))
    precision = resolve_precision(config.model)
    run.update(
        {
            "status": "running",
            "template": identity.as_dict(),
            "system": config.system,
            "model": prepared.model,
            "quantization": "nf4" if precision.quantized else "none",
            "dtype": str(precision.dtype).removeprefix("torch."),
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
                "train_tokens": sum(map(len, train_rows)),
            },
            "versions": versions(),
            "device": device_name(),
        }
        | ({} if resume else {"started": now()})
    )
    generator = Generator(model, tokenizer, template)
    sample_rows = _spread(prepared.eval or prepared.train, config.samples.count)
    seconds["load"] = time.perf_counter() - began

    began = time.perf_counter()
    if checkpoint is None:
        say(f"answering {len(sample_rows)} held-out rows before training")
        before = _answer(generator, sample_rows, config)
        write_json(run.folder / "before.json", [[a.text, a.stop, a.tokens] for a in before])
    else:
        before = _read_before(run, generator, sample_rows)
        run.forget_after(int(checkpoint.name.rpartition("-")[2]))
    seconds["samples_before"] = time.perf_counter() - began

    names = section_names([*train_rows, *eval_rows])
    progress = Progress(quiet=not show_progress)
    interrupt = Interrupt()
    callbacks = [RunLog(run), progress, interrupt, *plugins.training_callbacks(run.folder)]
    if config.train.early_stopping is not None:
        callbacks.append(EarlyStoppingCallback(config.train.early_stopping))
    # Where transformers' TensorBoard callback writes; otherwise it takes ./runs, among our own.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "tensorboard")
    FastLanguageModel.for_training(model)
    with quiet():
        trainer = Trainer(
            model=model,
            args=training_arguments(config, run, evaluate=bool(eval_rows)),
            train_dataset=Dataset.from_list([features(row, names) for row in train_rows]),
            eval_dataset=Dataset.from_list([features(row, names) for row in eval_rows])
            if eval_rows
            else None,
            processing_class=tokenizer,
            data_collator=pack
            if config.train.packing
            else lambda rows: pad(rows, tokenizer.pad_token_id),
            callbacks=callbacks,
            sections=names,
            progress=progress,
        )
    trainer.remove_callback(PrinterCallback)
    if DEVICE.type == "cpu":
        # TRL casts the adapters of a quantised model to bf16; on a CPU that costs accuracy and
        # gains nothing.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    began = time.perf_counter()
    try:
        with interrupt:
            if eval_rows and checkpoint is None:
                trainer.evaluate()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finished = not interrupt.asked
            if eval_rows and finished and not _evaluated(run, trainer.state.global_step):
                trainer.evaluate()
    except BaseException as error:
        run.update({"status": "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"})
        raise
    finally:
        progress.close()
    seconds["train"] = time.perf_counter() - began
    plot_losses(
        run.metrics(), run.folder / "loss.png", f"{template.name}, {Path(prepared.model).name}"
    )
    measured: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "tokens_per_second": round(progress.tokens_per_second, 1),
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
    say(f"answering {len(sample_rows)} held-out rows after training")
    after = _answer(generator, sample_rows, config)
    metrics = [metric for metric, _ in plugins.metrics.values()]
    scores = write_samples(run.folder, before, after, metrics)
    (run.folder / "before.json").unlink(missing_ok=True)
    measured["seconds"]["samples_after"] = round(time.perf_counter() - began, 1)
    run.update({"status": "done", "finished": now(), "scores": scores, **measured})
    return Outcome(run, "done", scores)


def training_arguments(config: RunConfig, run: Run, evaluate: bool) -> SFTConfig:
    """The settings of TRL's trainer."""
    chosen = config.train
    precision = resolve_precision(config.model)
    optimizer = "adamw_8bit" if DEVICE.type == "cuda" else "adamw_torch"
    eval_every = _every(chosen.eval_steps) if evaluate else ("no", 1)
    save_every = _every(chosen.save_steps)
    if chosen.early_stopping is not None:
        if not evaluate:
            raise FasttuneError(
                "early stopping needs held-out rows",
                "train.early_stopping",
                "set data.eval_fraction",
            )
        save_every = (
            eval_every  # transformers keeps the best model only where it saves and evaluates alike
        )
    return SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.eval_batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        warmup_steps=chosen.warmup_steps,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        optim=optimizer if chosen.optimizer == "auto" else chosen.optimizer,
        gradient_checkpointing=bool(_checkpointing(config)),
        logging_steps=chosen.log_steps,
        eval_strategy=eval_every[0],
        eval_steps=eval_every[1],
        save_strategy=save_every[0],
        save_steps=save_every[1],
        save_total_limit=chosen.save_total_limit,
        load_best_model_at_end=chosen.early_stopping is not None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to=list(chosen.report_to) or "none",
        run_name=run.name,
        seed=config.seed,
        bf16=precision.dtype == torch.bfloat16,
        fp16=precision.dtype == torch.float16,
        max_length=config.model.max_length,
        packing=False,  # our collator packs
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _every(steps: int | None) -> tuple[str, int]:
    return ("steps", steps) if steps else ("epoch", 1)


def _checkpointing(config: RunConfig) -> str | bool:
    """Unsloth's offloaded checkpointing on CUDA; none on a CPU, where memory is not what is
    short."""
    auto = "unsloth" if DEVICE.type == "cuda" else "off"
    chosen = config.train.gradient_checkpointing
    word = auto if chosen == "auto" else chosen
    return {"on": True, "off": False}.get(word, word)


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


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows at equal distances: a sorted file still shows all of its kinds."""
    count = min(count, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]


def _evaluated(run: Run, step: int) -> bool:
    return any("eval_loss" in line and line["step"] == step for line in run.metrics())
