"""The Unsloth arm: Unsloth with TRL's SFTTrainer, as in Unsloth's notebooks."""

from __future__ import annotations

from pathlib import Path

import torch

from fasttune.benchmark.arms.common import paced, start_adapters
from fasttune.benchmark.pipe import Pace, Spec
from fasttune.config import DTYPES
from fasttune.machine import this_device
from fasttune.models.choices import decide
from fasttune.models.dropout import switch_dropout_off
from fasttune.models.lora import choose_targets
from fasttune.models.unsloth import import_unsloth


def train(spec: Spec, pace: Pace, folder: Path) -> None:
    """Load the model through Unsloth and train it with TRL's SFTTrainer."""
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
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
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
        train_dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "labels": row.labels} for row in spec.rows]
        ),
        args=arguments,
        callbacks=[paced(pace)],
    )
    trainer.train()
