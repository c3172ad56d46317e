"""One training run: rows -> encoded rows -> TRL's SFTTrainer -> run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback

from fasttune import processes
from fasttune.config import in_full, with_training
from fasttune.data.split import data_hash, spread
from fasttune.encoding.cache import encode_rows, without_ending
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
from fasttune.models.base import digests, trainable
from fasttune.models.choices import decide, require_precision
from fasttune.models.load import add_lora, base_dropout, load_base
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import import_unsloth
from fasttune.planning.forecast import foresee
from fasttune.planning.schedule import check_schedule, settle
from fasttune.plugins.metric import Answer, score
from fasttune.records import Scores, TemplateFacts
from fasttune.runs import Run, create_run
from fasttune.runs.folder import now, step_of
from fasttune.runs.resume import last_checkpoint, rewind
from fasttune.terminal import library_prints
from fasttune.training.callbacks import Interrupt, Progress, RunLog
from fasttune.training.checkpoints import SaveByTime
from fasttune.training.report import write_samples
from fasttune.training.trainer import Trainer
from fasttune.training.trouble import (
    NothingLearned,
    Troubles,
    require_finite,
    require_learned,
    writing,
)

log = logging.getLogger(__name__)


def train(job: Job, resumed: Run | None = None, device: Device | None = None) -> Run:
    """Train, evaluate and write the run folder, a new one unless a run is resumed.

    Several processes train one run together: the first writes it, and returns last. If the run does
    not fit this machine or the model cannot be loaded, there is no run folder.

    Args:
        device: what the choices are made for; by default this machine's.
    """
    processes.meet(cuda=tensor_device() == "cuda")
    config, device = in_full(job.config), device or this_device()
    checkpoint, begun = None, processes.count()
    if resumed is not None:
        checkpoint = processes.share(last_checkpoint(resumed) if processes.first() else None)
        begun = resumed.manifest.get("processes", 1)  # steps keep their rows
        packs = resumed.manifest.get("choices", {}).get("side_by_side", 1)
        device = replace(device, cores=packs)  # packs keep their rows
        # "auto" may stand for something else here
        config = replace(config, model=replace(config.model, **resumed.used))
    job = replace(job, config=config, model=absolute(job.model))
    training, run = Training(job, replace(device, processes=begun)), resumed
    if run is None:
        if processes.first():
            run = create_run(
                training.job.config, job.model, training.facts(), training.held_out, job.train
            )
        run = processes.share(run)
        assert run is not None, "the first process has created it"
    with run.locked() if processes.first() else nullcontext():
        if resumed is not None and processes.first():
            with writing(run.folder, "config.yaml"):
                step = step_of(checkpoint) if checkpoint else 0
                run.restart(training.job.config, training.facts(), step)
        try:
            with writing(run.folder, "manifest.json"):  # the code below names other files
                if processes.first():
                    training.answer_before(run, checkpoint)
                before = processes.share(run.manifest.get("threads"))  # of a resumed run
                with threads().settled(before) as count:
                    if processes.first():
                        run.update({"threads": count})
                    finished = training.fit(run, checkpoint)
                processes.part()
                if finished and processes.first():
                    training.finish(run)
        except NothingLearned:
            run.stop("nothing learned")
            raise
        except BaseException as error:
            run.stop("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
    return run


class Training:
    """One run: load, answer before, fit, finish.

    Attributes:
        generator: the model with fresh adapters, its tokenizer and the template.
        planned: None if the architecture cannot be planned for.
        processes: number of processes the run began with. Each adds as many rows to a step.
        seconds: what was done -> the time it took.
    """

    def __init__(self, job: Job, device: Device) -> None:
        """Encode the rows, plan, and load the model."""
        began = time.perf_counter()
        self.processes = device.processes
        config, template = job.config, job.template
        require_precision(config.model, device)
        check_schedule(config.train, bool(job.eval))
        for note in job.notes:
            log.info("note: %s", note)
        if not config.train.learn_eos:
            log.warning("warning: EOS is not learned (train.learn_eos), so answers may not end")
        with processes.one_after_another():  # the others take the rows from the cache
            tokenizer = load_tokenizer(job.model, template.end)
            config = replace(config, model=trainable(config.model, job.model))
            self.train_rows = encode_rows(template, job.train, tokenizer, config, "training")
            self.eval_rows = encode_rows(template, job.eval, tokenizer, config, "held-out")
        config = settle(config, job.model, len(self.train_rows), self.processes)
        self.job = replace(job, config=config)
        self.planned = foresee(config, job.model, self.train_rows.lengths, device)
        if self.planned is not None:
            self.planned.require_fit()
        choices = decide(self.planned.config if self.planned else config, device)
        log.info("choices: %s", choices)
        model = load_base(config.model, choices, tokenizer)
        if off := base_dropout(model.config, config.model):
            log.info(off)
        model, self.coverage = add_lora(model, config.lora, config.seed, choices)
        log.info("%s", self.coverage)
        self.generator = Generator(model, tokenizer, template, choices)
        self.held_out = without_ending(job.eval, tokenizer, config)
        rows = self.held_out if job.eval else without_ending(job.train, tokenizer, config)
        self.sample_rows = spread(rows, config.samples.count)
        self.sampled = "held-out" if job.eval else "training"
        self.metrics = job.plugins.metrics_of(template)
        self.seconds = {"load": time.perf_counter() - began}

    def facts(self) -> dict[str, Any]:
        """What the manifest says about the run from its start."""
        job, choices = self.job, self.generator.choices
        return {
            "template": job.facts,
            "system": job.config.system,
            "model": job.model,
            "base": digests(job.model),
            "quantization": choices.quantization,
            "dtype": choices.dtype,
            "choices": asdict(choices),
            "lora": {
                "layers": self.coverage.adapted,
                "left_out": self.coverage.left_out,
                "parameters": self.coverage.parameters,
            },
            "data": {
                "source": absolute(job.source),
                "train_sha256": data_hash(job.train),
                "trained_sha256": self.train_rows.places_sha256,
                "heldout_sha256": data_hash(self.held_out),
                "train_rows": len(self.train_rows),
                "eval_rows": len(self.eval_rows),
                "train_tokens": self.train_rows.tokens,
            },
            "planned_memory_bytes": self.planned and round(self.planned.memory.peak),
            "processes": self.processes,
            "versions": versions(),
            "device": device_name(),
        }

    def answer_before(self, run: Run, checkpoint: Path | None) -> None:
        """Answer the sample rows untuned. Remove from a resumed run's log the steps that it takes
        again."""
        with self._timed("samples_before"):
            with writing(run.folder, "metrics.jsonl"):
                rewind(run, step_of(checkpoint) if checkpoint else -1)
            self.before = self._answers("before")
            score(self.before, self.metrics)  # a metric that fails does so before training

    def fit(self, run: Run, checkpoint: Path | None) -> bool:
        """Train, evaluate and draw the losses; False after a Ctrl-C, with a checkpoint saved."""
        config = self.job.config
        progress, interrupt = Progress(), Interrupt()
        callbacks = [progress, interrupt, *self.job.plugins.training_callbacks(run.folder)]
        if processes.first():
            callbacks.insert(0, RunLog(run))
        if config.train.save_minutes is not None:
            callbacks.append(SaveByTime(config.train.save_minutes))
        if config.train.early_stopping is not None:
            callbacks.append(EarlyStoppingCallback(config.train.early_stopping))
        accumulation = config.train.gradient_accumulation * self.processes
        trainer = self.trainer = Trainer(
            with_training(config, gradient_accumulation=accumulation),
            self.generator,
            self.train_rows,
            self.eval_rows,
            run,
            callbacks,
            Troubles(run, self.job.train, self.train_rows, self.planned),
        )
        if limit := processes.share(run.manifest.get("batch_limit")):  # of a resumed run
            trainer.collator.limit = limit
        log.info("training: %s", trainer.fast)
        blaming = self.job.plugins.blaming()
        with self._timed("train"), interrupt, library_prints(), progress, blaming:
            if self.eval_rows and checkpoint is None:
                trainer.evaluate()
            trainer.train_from(checkpoint)
            finished = not any(processes.any_of([interrupt.asked]))
            evaluated = {line["step"] for line in run.metrics() if "eval_loss" in line}
            done = processes.share(trainer.state.global_step in evaluated)
            if self.eval_rows and finished and not done:
                trainer.evaluate()
        trainer.saved_tokens = int(processes.add_up(torch.tensor(trainer.saved_tokens)))
        if processes.first():
            title = f"{self.job.template.name}, {Path(self.job.model).name}"
            with writing(run.folder, "loss.png"):
                plot_losses(run.metrics(), run.folder / "loss.png", title)
            run.update(self._measured() | ({} if finished else {"status": "interrupted"}))
        return finished

    def finish(self, run: Run) -> None:
        """Save the adapter and answer the sample rows again; then the run is done."""
        model, scores = self.trainer.model, Scores()
        with self._timed("samples_after"):
            require_finite(model, "after the last step")
            require_learned(model, self.trainer.state.global_step)
            with writing(run.folder, "adapter"):
                digest = save_adapter(run, model, self.generator.tokenizer, self.job.facts)
            run.update({"adapter_sha256": digest})
            if self.sample_rows:
                answers = self.before, self._answers("after")
                by = self.job.config.samples.by
                with writing(run.folder, "samples.json"):
                    scores = write_samples(run.folder, *answers, self.metrics, by, self.sampled)
        done = {"status": "done", "finished": now(), "scores": scores, "scored": self.sampled}
        run.update(done | self._measured())

    def _answers(self, when: str) -> list[Answer]:
        if not self.sample_rows:
            return []
        log.info("answering %d %s rows %s training", len(self.sample_rows), self.sampled, when)
        # Turns the KV cache on, which training keeps off.
        import_unsloth().for_inference(self.generator.model)
        chosen = self.job.config.samples
        sampling = Sampling(max_new_tokens=chosen.max_new_tokens)
        return list(self.generator.answers(self.sample_rows, sampling, chosen.batch_size))

    def _measured(self) -> dict[str, Any]:
        trainer, state = self.trainer, self.trainer.state
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


def save_adapter(run: Run, model: Any, tokenizer: Any, facts: TemplateFacts) -> str:
    """Write the adapter, its tokenizer and the format, and return the digest of its seal."""
    with atomic_folder(run.adapter) as folder:
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in
        tokenizer.save_pretrained(folder)
        write_json(folder / "template.json", facts)
        return seal(folder)
