"""The arms of a benchmark: one process each, which trains when it is told to.

    python -m fasttune.bench_arms ARM SPEC

Unsloth changes transformers for the whole process, so the plain arm must not share one with it.
Nothing here imports unsloth before the arm that needs it does.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fasttune.benchmark.pipe import Pace, Spec
from fasttune.config import DTYPES, RunConfig
from fasttune.errors import FasttuneError
from fasttune.machine import peak_memory, tensor_device, this_device
from fasttune.models.choices import decide
from fasttune.models.dropout import switch_dropout_off
from fasttune.models.lora import choose_targets


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in trainable(model))


def start_adapters(model: torch.nn.Module, seed: int) -> None:
    """Give the adapters initial weights that depend on the seed and their place alone.

    B is 0 and A uniform within 1/sqrt(inputs), as PEFT draws it (Kaiming with a = sqrt(5)).
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
        elif ".lora_A." in name:
            place = name[name.index("layers.") :] if "layers." in name else name
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {place}".encode()))
            start = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)


def train_plain(spec: Spec, pace: Pace, folder: Path) -> None:
    """transformers and PEFT in a short loop."""
    import peft
    from torch.nn.utils import clip_grad_norm_
    from torch.utils.data import DataLoader
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        get_scheduler,
    )

    config, lora, chosen = spec.config, spec.config.lora, spec.config.train
    device = torch.device(tensor_device())
    dtype = getattr(torch, DTYPES[config.model.precision])
    quantized = config.model.quantization == "nf4"
    checkpointing = chosen.gradient_checkpointing != "off"
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(
        config.model.name,
        dtype=dtype,
        device_map=device.type,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if quantized
        else None,
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
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=choose_targets(model, lora.targets),
            use_rslora=lora.rslora,
            task_type="CAUSAL_LM",
        ),
    )
    start_adapters(model, config.seed)
    model.config.use_cache = False
    model.train()

    examples = [{"input_ids": row.input_ids, "labels": row.labels} for row in spec.rows]
    batches = _again_and_again(
        DataLoader(
            examples,
            batch_size=chosen.batch_size,
            collate_fn=DataCollatorForSeq2Seq(tokenizer),
        )
    )
    optimizer = _optimizer(trainable(model), config)
    scheduler = get_scheduler(chosen.schedule, optimizer, chosen.warmup_steps, spec.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    pace.ready(_parameters(model))
    for _ in range(spec.steps):
        parts = [next(batches).to(device) for _ in range(chosen.gradient_accumulation)]
        learned = sum((part["labels"][:, 1:] != -100).sum() for part in parts)
        total = 0.0
        for part in parts:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(**part, num_items_in_batch=learned).loss
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        clip_grad_norm_(trainable(model), chosen.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        pace.step(total)


def _again_and_again(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _optimizer(parameters: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """The optimiser that transformers' Trainer makes of the same name."""
    settings = {"lr": config.train.learning_rate, "weight_decay": config.train.weight_decay}
    if config.train.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)


def train_unsloth(spec: Spec, pace: Pace, folder: Path) -> None:
    """Unsloth with TRL's SFTTrainer, as its notebooks have it."""
    from fasttune.models.backend import FastLanguageModel

    # isort: split
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config, lora, chosen = spec.config, spec.config.lora, spec.config.train
    dtype = getattr(torch, DTYPES[config.model.precision])
    choices = decide(config, this_device())
    checkpointing = "unsloth" if spec.notebook_checkpointing else choices.unsloth_checkpointing
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=config.model.name,
        max_seq_length=config.model.max_length,
        dtype=dtype,
        load_in_4bit=choices.quantized,
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
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "labels": row.labels} for row in spec.rows]
        ),
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=chosen.batch_size,
            gradient_accumulation_steps=chosen.gradient_accumulation,
            gradient_checkpointing=bool(checkpointing),
            max_steps=spec.steps,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type=chosen.schedule,
            warmup_steps=chosen.warmup_steps,
            weight_decay=chosen.weight_decay,
            max_grad_norm=chosen.max_grad_norm,
            optim=chosen.optimizer,
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
        ),
        callbacks=[_paced(pace)],
    )
    trainer.train()


def train_fasttune(spec: Spec, pace: Pace, folder: Path) -> None:
    """What `fasttune run` does between loading the model and saving the adapter."""
    from fasttune.models.load import add_lora, load_base

    # isort: split
    from fasttune.packing import section_names
    from fasttune.progress import Progress
    from fasttune.runs import Run
    from fasttune.train import make_trainer
    from fasttune.trainer import RunLog

    config = spec.config
    choices = decide(config, this_device())
    model, tokenizer = load_base(config.model, choices)
    model, _ = add_lora(model, config.lora, config.seed, choices)
    start_adapters(model, config.seed)
    run, progress = Run(folder), Progress(quiet=True)
    callbacks = [RunLog(run), progress, _paced(pace)]
    sections = section_names(spec.rows)
    trainer = make_trainer(
        config, choices, model, tokenizer, spec.rows, [], sections, run, callbacks, progress
    )
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.save_strategy = "no"
    trainer.train()


def _paced(pace: Pace) -> Any:
    """The callback that puts transformers' Trainer under a pace."""
    from transformers import TrainerCallback

    class Paced(TrainerCallback):
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            pace.ready(_parameters(model))

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
        ) -> None:
            if logs and "loss" in logs:  # after the update, before the next rows are fetched
                pace.step(logs["loss"])

    return Paced()


ARMS: dict[str, Callable[[Spec, Pace, Path], None]] = {
    "plain": train_plain,
    "unsloth": train_unsloth,
    "fasttune": train_fasttune,
}


def main(arguments: Sequence[str]) -> None:
    arm, spec_file = arguments
    # Libraries print to standard output, which the benchmark reads: they get standard error.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    spec = Spec.read(Path(spec_file))
    pace = Pace(sys.stdin, reports)
    folder = Path(spec_file).parent / arm
    folder.mkdir(exist_ok=True)
    try:
        ARMS[arm](spec, pace, folder)
        pace.tell(peak_memory=peak_memory())
    except FasttuneError as error:
        pace.tell(error=[error.message, error.where, error.hint])
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
