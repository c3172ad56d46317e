"""Assembling one training run: rows -> encoded rows -> TRL's SFTTrainer -> run folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from fasttune import processes
from fasttune.config import RunConfig, in_full, steps
from fasttune.data.rows import Rows
from fasttune.data.split import data_hash, spread
from fasttune.encoding.batches import Collator
from fasttune.encoding.cache import EncodedRows, encode_rows, without_ending
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.files import absolute, atomic_folder, seal, write_json
from fasttune.generation.generator import Generator, Sampling
from fasttune.job import Job
from fasttune.losses import plot_losses
from fasttune.machine import (
    Device,
    device_name,
    peak_memory,
    tensor_device,
    this_device,
    threads,
    versions,
)
from fasttune.models.choices import Choices, decide, require_precision
from fasttune.models.fast.fast import check_packing, speed_up
from fasttune.models.head import check_head
from fasttune.models.load import add_lora, base_dropout, load_base
from fasttune.models.lora import Coverage
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import import_unsloth
from fasttune.planning.forecast import Forecast, foresee
from fasttune.plugins.metric import Answer, score
from fasttune.quiet import library_prints, quiet
from fasttune.records import TemplateFacts
from fasttune.runs import Run, create_run
from fasttune.runs.folder import now
from fasttune.runs.resume import last_checkpoint, rewind, step_of
from fasttune.training.callbacks import Interrupt, Progress, RunLog
from fasttune.training.checkpoints import SaveByTime
from fasttune.training.report import write_samples
from fasttune.training.settings import check_schedule, check_warmup, training_arguments
from fasttune.training.side_by_side import changes_with_length
from fasttune.training.trainer import Trainer
from fasttune.training.trouble import (
    NothingLearned,
    Troubles,
    require_finite,
    require_learned,
    writing,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """What a job trains with.

    Attributes:
        generator: the model with fresh adapters, its tokenizer and the template.
        planned: None if the architecture cannot be planned for.
        seconds: time that loading took.
    """

    generator: Generator
    train_rows: EncodedRows
    eval_rows: EncodedRows
    coverage: Coverage
    planned: Forecast | None
    seconds: float


def train(job: Job, resumed: Run | None = None, device: Device | None = None) -> Run:
    """Train, evaluate and write the run folder, a new one unless a run is resumed.

    Several processes train one run together: the first writes it, and returns last. If the run does
    not fit this machine or the model cannot be loaded, there is no run folder.

    Args:
        device: what the choices are made for; by default this machine's.

    Returns:
        the run; the status in its manifest is "done", or "interrupted" after a Ctrl-C, with a
        checkpoint to resume from.
    """
    processes.meet(cuda=tensor_device() == "cuda")
    config, device = in_full(job.config), device or this_device()
    checkpoint, begun = None, processes.count()
    if resumed is not None:
        checkpoint = processes.share(last_checkpoint(resumed) if processes.first() else None)
        begun = resumed.manifest.get("processes", 1)  # steps keep their rows
        device = replace(device, cores=resumed.side_by_side)  # packs keep their rows
        # "auto" may stand for something else here
        config = replace(config, model=replace(config.model, **resumed.used))
    job = replace(job, config=config, model=absolute(job.model))
    device = replace(device, processes=begun)
    ready = load(job, device)
    return _train(job, ready, resumed, checkpoint, begun)


def _train(job: Job, ready: Ready, resumed: Run | None, checkpoint: Path | None, begun: int) -> Run:
    run = resumed
    held_out = without_ending(job.eval, ready.generator.tokenizer, job.config)
    facts = _facts(job, ready, held_out) | {"processes": begun}
    if run is None:
        first = processes.first()
        made = create_run(job.config, job.model, facts, held_out, job.train) if first else None
        run = processes.share(made)
        assert run is not None, "the first process has made it"
    with run.locked() if processes.first() else nullcontext():
        if resumed is not None and processes.first():
            with writing(run.folder, "config.yaml"):
                run.restart(job.config, facts)
        training = Training(job, ready, run, checkpoint)
        try:
            with writing(run.folder, "manifest.json"):  # what else is written has a name below
                if processes.first():
                    training.answer_before()
                before = processes.share(run.manifest.get("threads"))  # of a resumed run
                with threads().settled(before) as count:
                    if processes.first():
                        run.update({"threads": count})
                    finished = training.fit()
                processes.part()
                if finished and processes.first():
                    training.finish()
        except BaseException as error:
            if isinstance(error, NothingLearned):
                run.stop("nothing learned")
            else:
                run.stop("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
    return run


def load(job: Job, device: Device) -> Ready:
    """Encode the rows, plan, and load the model with fresh adapters."""
    began = time.perf_counter()
    config = job.config
    require_precision(config.model, device)
    check_schedule(config.train, bool(job.eval))
    for note in job.notes:
        log.info("note: %s", note)
    if not config.train.learn_eos:
        log.warning("warning: no loss is taken on EOS (train.learn_eos), so answers may not end")
    with processes.one_after_another():  # the others take the rows from the cache
        tokenizer = load_tokenizer(job.model, job.template.end)
        train_rows = encode_rows(job.template, job.train, tokenizer, config, "training")
        eval_rows = encode_rows(job.template, job.eval, tokenizer, config, "held-out")
    if note := check_warmup(config.train, steps(len(train_rows), config, device.processes)):
        log.info("note: %s", note)
    planned = foresee(config, job.model, train_rows.lengths, device)
    if planned is not None:
        planned.require_fit()
    choices = decide(planned.config if planned else config, device)
    log.info("choices: %s", choices)
    model = load_base(config.model, choices, tokenizer)
    if off := base_dropout(model.config, config.model):
        log.info(off)
    model, coverage = add_lora(model, config.lora, config.seed, choices)
    log.info("%s", coverage)
    generator = Generator(model, tokenizer, job.template, choices)
    seconds = time.perf_counter() - began
    return Ready(generator, train_rows, eval_rows, coverage, planned, seconds)


def _facts(job: Job, ready: Ready, held_out: Rows) -> dict[str, Any]:
    """What the manifest says about the run from its start."""
    choices = ready.generator.choices
    return {
        "template": job.facts,
        "system": job.config.system,
        "model": job.model,
        "quantization": choices.quantization,
        "dtype": choices.dtype,
        "choices": asdict(choices),
        "lora": {
            "layers": ready.coverage.adapted,
            "left_out": ready.coverage.left_out,
            "parameters": ready.coverage.parameters,
        },
        "data": {
            "source": absolute(job.source),
            "train_sha256": data_hash(job.train),
            "trained_sha256": ready.train_rows.places_sha256,
            "heldout_sha256": data_hash(held_out),
            "train_rows": len(ready.train_rows),
            "eval_rows": len(ready.eval_rows),
            "train_tokens": ready.train_rows.tokens,
        },
        "planned_memory_bytes": ready.planned and round(ready.planned.memory.peak),
        "versions": versions(),
        "device": device_name(),
    }


class Training:
    """One run, from the loaded model to the finished folder: answer before, fit, finish.

    Args:
        checkpoint: to resume from; None starts with the first step.
    """

    def __init__(self, job: Job, ready: Ready, run: Run, checkpoint: Path | None) -> None:
        self.job, self.ready, self.run = job, ready, run
        self.checkpoint = checkpoint
        self.generator = ready.generator
        rows = without_ending(job.eval or job.train, ready.generator.tokenizer, job.config)
        self.sample_rows = spread(rows, job.config.samples.count)
        self.sampled = "held-out" if job.eval else "training"
        self.seconds = {"load": ready.seconds}
        self.metrics = [metric for metric, _ in job.plugins.metrics.values()]
        self.before: list[Answer] = []
        self.trainer: Trainer | None = None

    def answer_before(self) -> None:
        """Answer the sample rows untuned, unless a resumed run has these answers. Remove from its
        log the steps that it takes again."""
        with self._timed("samples_before"):
            step = step_of(self.checkpoint) if self.checkpoint else -1
            with writing(self.run.folder, "metrics.jsonl"):
                rewind(self.run, step)
            saved = self.run.answers_before(len(self.sample_rows)) if self.checkpoint else None
            if saved is None:
                self.before = self._answers("before")
                score(self.before, self.metrics)  # one that fails does so before training
                saved = [(a.text, a.stop, a.tokens) for a in self.before]
                with writing(self.run.folder, "before.json"):
                    write_json(self.run.folder / "before.json", saved)
            else:
                self.before = [
                    Answer(row, text, self.generator.template.parsed(text), stop, tokens)
                    for row, (text, stop, tokens) in zip(self.sample_rows, saved, strict=True)
                ]

    def fit(self) -> bool:
        """Train, evaluate and draw the losses; False after a Ctrl-C, with a checkpoint saved."""
        config, run = self.job.config, self.run
        progress, interrupt = Progress(), Interrupt()
        callbacks = [progress, interrupt, *self.job.plugins.training_callbacks(run.folder)]
        if processes.first():
            callbacks.insert(0, RunLog(run))
        if config.train.save_minutes is not None:
            callbacks.append(SaveByTime(config.train.save_minutes))
        if config.train.early_stopping is not None:
            callbacks.append(EarlyStoppingCallback(config.train.early_stopping))
        train_rows, eval_rows = self.ready.train_rows, self.ready.eval_rows
        sections = list(dict.fromkeys([*train_rows.sections, *eval_rows.sections]))
        trainer = self.trainer = make_trainer(
            config, self.generator, train_rows, eval_rows, sections, run, callbacks,
            Troubles(run, self.job.train, train_rows, self.ready.planned),
            run.manifest.get("processes", 1),
        )  # fmt: skip
        if limit := processes.share(run.manifest.get("batch_limit")):  # of a resumed run
            trainer.collator.limit = limit
        log.info("training: %s", trainer.fast)
        blaming = self.job.plugins.blaming()
        with self._timed("train"), interrupt, library_prints(), progress, blaming:
            held_out = bool(eval_rows)
            if held_out and self.checkpoint is None:
                trainer.evaluate()
            trainer.train_from(self.checkpoint)
            finished = not any(processes.any_of([interrupt.asked]))
            evaluated = {line["step"] for line in run.metrics() if "eval_loss" in line}
            done = processes.share(trainer.state.global_step in evaluated)
            if held_out and finished and not done:
                trainer.evaluate()
        trainer.saved_tokens = int(processes.add_up(torch.tensor(trainer.saved_tokens)))
        if not processes.first():
            return finished
        title = f"{self.job.template.name}, {Path(self.job.model).name}"
        with writing(run.folder, "loss.png"):
            plot_losses(run.metrics(), run.folder / "loss.png", title)
        run.update(self._measured(trainer) | ({} if finished else {"status": "interrupted"}))
        return finished

    def finish(self) -> None:
        """Save the adapter and answer the sample rows again; then the run is done."""
        assert self.trainer is not None, "fit comes first"
        with self._timed("samples_after"):
            model, tokenizer = self.trainer.model, self.generator.tokenizer
            require_finite(model, "after the last step")
            require_learned(model, self.trainer.state.global_step)
            with writing(self.run.folder, "adapter"):
                digest = save_adapter(self.run, model, tokenizer, self.job.facts)
            self.run.update({"adapter_sha256": digest})
            scores: dict[str, dict[str, float]] = {}
            if self.sample_rows:
                after = self._answers("after")
                by = self.job.config.samples.by
                with writing(self.run.folder, "samples.json"):
                    scores = write_samples(
                        self.run.folder, self.before, after, self.metrics, by, self.sampled
                    )
            (self.run.folder / "before.json").unlink(missing_ok=True)
        done = {"status": "done", "finished": now(), "scores": scores, "scored": self.sampled}
        self.run.update(done | self._measured(self.trainer))

    def _answers(self, when: str) -> list[Answer]:
        if not self.sample_rows:
            return []
        log.info("answering %d %s rows %s training", len(self.sample_rows), self.sampled, when)
        # Turns the KV cache on, which training keeps off.
        import_unsloth().for_inference(self.generator.model)
        chosen = self.job.config.samples
        sampling = Sampling(max_new_tokens=chosen.max_new_tokens)
        return list(self.generator.answers(self.sample_rows, sampling, chosen.batch_size))

    def _measured(self, trainer: Trainer) -> dict[str, Any]:
        state = trainer.state
        best = {} if state.best_metric is None else {"best_eval_loss": state.best_metric}
        return best | {
            "steps": state.global_step,
            "attention": trainer.fast.attention,
            "fast_path": str(trainer.fast),
            "tokens_per_second": round(trainer.progress.tokens_per_second, 1),
            "shared_tokens_saved": trainer.saved_tokens,
            "peak_memory_bytes": peak_memory(),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began


def make_trainer(
    config: RunConfig,
    generator: Generator,
    train_rows: Sequence[Encoded],
    eval_rows: Sequence[Encoded],
    sections: Sequence[str],
    run: Run,
    callbacks: Sequence[TrainerCallback],
    troubles: Troubles | None = None,
    begun: int = 1,
) -> Trainer:
    """The trainer of a run, ready to train.

    Args:
        generator: its model, with fresh adapters, is put into training mode and onto the fast path.
        sections: the names of the learned spans of all rows.
        run: where checkpoints and TensorBoard's files go; nothing is written yet.
        callbacks: one of them is a `Progress`, which counts the tokens.
        begun: how many processes the run began with.
    """
    model, tokenizer, choices = generator.model, generator.tokenizer, generator.choices
    # Where transformers' TensorBoard callback writes; otherwise it takes ./runs, among our own.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder / "tensorboard")
    # Unsloth's words for with and without autocast. It would turn it on wherever a GPU has bf16.
    os.environ["UNSLOTH_MIXED_PRECISION"] = "float32" if choices.autocast else "bfloat16"
    import_unsloth().for_training(model)
    check_head(model)
    fast = speed_up(model, choices)
    if config.train.packing:
        check_packing(model, fast, choices)
    with quiet():
        trainer = Trainer(
            model=model,
            args=training_arguments(config, run, bool(eval_rows), choices, begun),
            train_rows=train_rows,
            eval_rows=eval_rows,
            processing_class=tokenizer,
            collator=Collator(
                config.train.batch_size,
                config.model.max_length,
                packing=config.train.packing,
                share=fast.by_row,
                pad_id=tokenizer.pad_token_id,
                sections=sections,
                side_by_side=choices.side_by_side,
            ),
            callbacks=list(callbacks),
            progress=next(each for each in callbacks if isinstance(each, Progress)),
            fast=fast,
            troubles=troubles,
            side_by_side=1 if changes_with_length(model.config) else choices.side_by_side,
            # If a CPU's memory runs out, the system kills the process: there is nothing to try.
            longest=_longest(train_rows, config, begun) if tensor_device() != "cpu" else (),
        )
    trainer.remove_callback(PrinterCallback)
    _keep_precision(trainer, choices)
    return trainer


def _keep_precision(trainer: Trainer, choices: Choices) -> None:
    """Require the mixed precision that was chosen, and keep the adapters in fp32."""
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


def _longest(rows: Sequence[Encoded], config: RunConfig, processes: int) -> list[int]:
    """The places of the longest rows, as many as a step has."""
    lengths = rows.lengths if isinstance(rows, EncodedRows) else [len(row) for row in rows]
    count = config.train.batch_size * config.train.gradient_accumulation * processes
    return sorted(range(len(lengths)), key=lambda at: -lengths[at])[:count]


def save_adapter(run: Run, model: Any, tokenizer: Any, facts: TemplateFacts) -> str:
    """Write the adapter, its tokenizer and the format, and return the digest of its seal."""
    with atomic_folder(run.adapter) as folder:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in
        tokenizer.save_pretrained(folder)
        write_json(folder / "template.json", facts)
        return seal(folder)
