"""The arms of a training benchmark. Each trains in its own process, on command.

Unsloth changes transformers for the whole process, so an arm imports its libraries itself.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fasttune.config import DTYPES, RunConfig
from fasttune.encoding.encode import Encoded
from fasttune.errors import FasttuneError
from fasttune.machine import peak_memory, tensor_device, this_device
from fasttune.models.choices import decide
from fasttune.models.load import add_lora, choose_targets, load_base, nf4, switch_dropout_off
from fasttune.models.tokenizer import load_tokenizer
from fasttune.models.unsloth import hide_broken_torchvision, import_unsloth


@dataclass(frozen=True)
class Spec:
    """The task of every arm.

    Attributes:
        config: of the run, with no setting left at "auto".
        rows: encoded, in the order of training; whole steps only.
        steps: optimiser steps.
        notebook_checkpointing: the Unsloth arm checkpoints as Unsloth's notebooks do, whatever the
            config says.
    """

    config: RunConfig
    rows: list[Encoded]
    steps: int
    notebook_checkpointing: bool = False

    def plain_rows(self) -> list[dict[str, list[int]]]:
        return [{"input_ids": row.input_ids, "labels": row.labels} for row in self.rows]


class Pace:
    """Takes steps only on command, and reports the time of each.

    A step lasts from the command, or the end of the previous step, to its loss after the
    optimiser's update. It includes fetching and padding the rows. A waiting arm is blocked on a
    read and uses no processor.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._steps_left = 0
        self._start = 0.0

    def ready(self, model: torch.nn.Module) -> None:
        """Report the number of trainable parameters of the loaded model; wait for a command."""
        self._pipe.send({"parameters": sum(weight.numel() for weight in trainable(model))})
        self._wait()

    def step(self, loss: float) -> None:
        """Report a finished step with its mean loss per learned token."""
        if tensor_device() == "cuda":
            torch.cuda.synchronize()
        self._pipe.send({"seconds": time.perf_counter() - self._start, "loss": loss})
        self._steps_left -= 1
        if not self._steps_left:
            self._wait()  # after the last step too, since cleaning up would slow the other arms
        self._start = time.perf_counter()

    def _wait(self) -> None:
        try:
            self._steps_left = self._pipe.recv()
        except (EOFError, ConnectionError):  # the benchmark has ended
            raise SystemExit from None
        self._start = time.perf_counter()

    def callback(self) -> Any:
        """Make a callback for transformers' Trainer that waits for commands and reports steps."""
        from transformers import TrainerCallback

        class Paced(TrainerCallback):
            def on_train_begin(_, *args: Any, model: Any, **kwargs: Any) -> None:
                self.ready(model)

            def on_log(_, *args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
                if "loss" in logs:  # after the update, before the next rows are fetched
                    self.step(logs["loss"])

        return Paced()


def run_arm(arm: str, spec: Spec, pipe: Connection, folder: Path) -> None:
    """Train an arm in this process, which writes to a log in the folder."""
    log = (folder / f"{arm}.log").open("wb")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    (folder / arm).mkdir()
    try:
        if arm == "plain":
            hide_broken_torchvision()
        else:
            import_unsloth()  # before the arm imports transformers, TRL and PEFT
        TRAININGS[arm](spec, Pace(pipe), folder / arm)
        pipe.send({"peak_memory": peak_memory()})
    except FasttuneError as error:
        pipe.send(error)


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def start_adapters(model: torch.nn.Module, seed: int) -> None:
    """Set the adapters' initial weights from the seed and each adapter's place in the model.

    B is 0, and A is uniform within 1/sqrt(inputs), as in PEFT (Kaiming with a = sqrt(5)).
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
        elif ".lora_A." in name:
            place = name[name.index("layers.") :] if "layers." in name else name
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place}".encode()))
            weights = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(weights, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(weights)


def train_plain(spec: Spec, pace: Pace, folder: Path) -> None:
    """Train in a short loop with transformers and PEFT, on padded batches."""
    from torch.nn.utils import clip_grad_norm_
    from transformers import AutoTokenizer, get_scheduler

    config, settings = spec.config, spec.config.train
    device = torch.device(tensor_device())
    dtype = getattr(torch, DTYPES[config.model.precision])
    tokenizer = AutoTokenizer.from_pretrained(config.model.name, trust_remote_code=False)
    model = _plain_model(config, dtype, device)
    batches = _plain_batches(spec, tokenizer)
    optimizer = _plain_optimizer(trainable(model), config)
    scheduler = get_scheduler(settings.schedule, optimizer, int(settings.warmup_steps), spec.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    pace.ready(model)
    for _ in range(spec.steps):
        step_batches = [next(batches).to(device) for _ in range(settings.gradient_accumulation)]
        learned = sum((batch["labels"][:, 1:] != -100).sum() for batch in step_batches)
        total = 0.0
        for batch in step_batches:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(**batch, num_items_in_batch=learned).loss
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        clip_grad_norm_(trainable(model), settings.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        pace.step(total)


def _plain_model(config: RunConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the base with new adapters, in training mode."""
    import peft
    from transformers import AutoModelForCausalLM

    lora = config.lora
    quantized = config.model.quantization == "nf4"
    checkpointing = config.train.gradient_checkpointing != "off"
    model = AutoModelForCausalLM.from_pretrained(
        config.model.name,
        dtype=dtype,
        device_map=device.type,
        trust_remote_code=False,
        quantization_config=nf4(dtype) if quantized else None,
    )
    if config.model.dropout == "off":
        switch_dropout_off(model)
    if quantized:
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=checkpointing
        )
    elif checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    adapters = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=choose_targets(model, lora.targets),
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, adapters)
    start_adapters(model, config.seed)
    model.config.use_cache = False
    return model.train()


def _plain_batches(spec: Spec, tokenizer: Any) -> Iterator[Any]:
    """Yield padded batches of the rows in order, endlessly."""
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    collate, batch_size = DataCollatorForSeq2Seq(tokenizer), spec.config.train.batch_size
    loader = DataLoader(spec.plain_rows(), batch_size, collate_fn=collate)
    while True:
        yield from loader


def _plain_optimizer(weights: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Make the optimiser that transformers' Trainer makes for the same name."""
    settings = {"lr": float(config.train.learning_rate), "weight_decay": config.train.weight_decay}
    if config.train.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(weights, **settings)
    return torch.optim.AdamW(weights, **settings, fused=True)


def train_unsloth(spec: Spec, pace: Pace, folder: Path) -> None:
    """Train with Unsloth and TRL's SFTTrainer, as Unsloth's notebooks do."""
    FastLanguageModel = import_unsloth()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config, lora, settings = spec.config, spec.config.lora, spec.config.train
    dtype = getattr(torch, DTYPES[config.model.precision])
    choices = decide(config, this_device())
    checkpointing = "unsloth" if spec.notebook_checkpointing else choices.unsloth_checkpointing
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=config.model.name,
        max_seq_length=config.model.max_length,
        dtype=dtype,
        load_in_4bit=choices.quantized,
        trust_remote_code=False,
    )
    if config.model.dropout == "off":
        switch_dropout_off(model)
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        target_modules=choose_targets(model, lora.targets),
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=config.seed,
        use_rslora=lora.rslora,
    )
    start_adapters(model, config.seed)
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=bool(checkpointing),
        max_steps=spec.steps,
        learning_rate=float(settings.learning_rate),
        lr_scheduler_type=settings.schedule,
        warmup_steps=int(settings.warmup_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        max_length=config.model.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(spec.plain_rows()),
        args=arguments,
        callbacks=[pace.callback()],
    )
    trainer.train()


def train_fasttune(spec: Spec, pace: Pace, folder: Path) -> None:
    """Load and train the model as `fasttune run` does."""
    import_unsloth()
    from fasttune.formats.parts import given, learn
    from fasttune.formats.template import Template
    from fasttune.generation.generator import Generator
    from fasttune.runs import Run
    from fasttune.training.callbacks import Progress, RunLog
    from fasttune.training.trainer import Trainer

    config = spec.config
    choices = decide(config, this_device())
    tokenizer = load_tokenizer(config.model.name)
    model = load_base(config.model, choices, tokenizer)
    model, _ = add_lora(model, config.lora, config.seed, choices)
    start_adapters(model, config.seed)
    # A generator needs a template. The rows are already encoded, so this one renders nothing.
    unused = Template(name="unused", parts=[given("prompt", "-"), learn("response", "{output}")])
    generator, run = Generator(model, tokenizer, unused, choices), Run(folder)
    callbacks = [RunLog(run), Progress(), pace.callback()]
    trainer = Trainer(config, generator, spec.rows, [], run, callbacks)
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.save_strategy = "no"
    trainer.train()


def train_fast_path(spec: Spec, pace: Pace, folder: Path) -> None:
    """Train the fasttune arm with `model.fast_path=on`, which CUDA needs."""
    model = replace(spec.config.model, fast_path="on")
    train_fasttune(replace(spec, config=replace(spec.config, model=model)), pace, folder)


TRAININGS: dict[str, Callable[[Spec, Pace, Path], None]] = {
    "plain": train_plain,
    "unsloth": train_unsloth,
    "fasttune": train_fasttune,
    "fast_path": train_fast_path,
}
