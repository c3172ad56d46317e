"""The arm of Unsloth, as its notebooks have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fasttune.benchmark.arms.common import paced, start_adapters
from fasttune.benchmark.pipe import Pace, Spec
from fasttune.config import DTYPES, RunConfig
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.dropout import switch_dropout_off
from fasttune.models.lora import choose_targets
from fasttune.models.unsloth import import_unsloth


def train(spec: Spec, pace: Pace, folder: Path) -> None:
    """Unsloth with TRL's SFTTrainer, as its notebooks have it."""
    FastLanguageModel = import_unsloth()
    from datasets import Dataset
    from trl import SFTTrainer

    config, lora = spec.config, spec.config.lora
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
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "labels": row.labels} for row in spec.rows]
        ),
        args=_arguments(spec.config, spec.steps, bool(checkpointing), folder),
        callbacks=[paced(pace)],
    )
    trainer.train()


def _arguments(config: RunConfig, steps: int, checkpointing: bool, folder: Path) -> Any:
    from trl import SFTConfig

    chosen, dtype = config.train, DTYPES[config.model.precision]
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=chosen.batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation,
        gradient_checkpointing=checkpointing,
        max_steps=steps,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        warmup_steps=chosen.warmup_steps,
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        optim=chosen.optimizer,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        max_length=config.model.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
