"""The plain arm: a short training loop with transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fasttune.benchmark.arms.common import count_trainable, start_adapters, trainable
from fasttune.benchmark.pipe import Pace, Spec
from fasttune.config import DTYPES, RunConfig
from fasttune.machine import tensor_device
from fasttune.models.dropout import switch_dropout_off
from fasttune.models.lora import choose_targets


def train(spec: Spec, pace: Pace, folder: Path) -> None:
    """Train with padded batches, one optimiser step per report."""
    from torch.nn.utils import clip_grad_norm_
    from transformers import AutoTokenizer, get_scheduler

    config, settings = spec.config, spec.config.train
    device = torch.device(tensor_device())
    dtype = getattr(torch, DTYPES[config.model.precision])
    tokenizer = AutoTokenizer.from_pretrained(config.model.name, trust_remote_code=False)
    model = _model(config, dtype, device)
    batches = _batches(spec, tokenizer)
    optimizer = _optimizer(trainable(model), config)
    scheduler = get_scheduler(settings.schedule, optimizer, settings.warmup_steps, spec.steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    pace.ready(count_trainable(model))
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


def _model(config: RunConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the base with new adapters, in training mode."""
    import peft
    from transformers import AutoModelForCausalLM

    from fasttune.models.load import nf4

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
    return model.train()


def _batches(spec: Spec, tokenizer: Any) -> Iterator[Any]:
    """Yield padded batches of the rows in order, endlessly."""
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    loader = DataLoader(
        [{"input_ids": row.input_ids, "labels": row.labels} for row in spec.rows],
        batch_size=spec.config.train.batch_size,
        collate_fn=DataCollatorForSeq2Seq(tokenizer),
    )
    while True:
        yield from loader


def _optimizer(parameters: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """Make the optimiser that transformers' Trainer makes for the same name."""
    settings = {"lr": config.train.learning_rate, "weight_decay": config.train.weight_decay}
    if config.train.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)
