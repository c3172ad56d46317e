"""Commands of fasttune, and single steps, one after the other in one process: importing Unsloth
takes longer than most of them.

    commands.py FOLDER < WORK

WORK is a list of {"arguments": [...], "input": "..."} for a command and {"step": [...]} for a step,
see step.py. Of number N the folder gets N.out, N.err, and N.json with the exit status and with what
models were loaded.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import sitecustomize

loaded = []
trainers = []


def note_models(load):
    """What `load_base` gave since the last command.

    Unsloth collects garbage 20 times a load, half a second each in so many objects; those that are
    there already are left out.
    """
    load_base = load.load_base

    def noting(*args, **named):
        gc.freeze()
        model = load_base(*args, **named)
        loaded.append(model)
        return model

    load.load_base = noting


def note_trainers(train):
    make = train.Trainer

    def noting(*args):
        trainer = make(*args)
        trainers.append(trainer)
        return trainer

    train.Trainer = noting


sitecustomize.ANSWERS["fasttune.models.load"] = note_models
sitecustomize.ANSWERS["fasttune.training.train"] = note_trainers


def facts_of_model(model):
    """What shows which code a model ran."""
    modules = list(model.modules())
    adapters = {str(p.dtype) for name, p in model.named_parameters() if "lora_" in name}
    embeddings = model.get_input_embeddings()
    return {
        "generate": model.generate.__module__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "adapters": sorted(adapters),
        "quantized": sum(type(m).__module__ == "bitsandbytes.nn.modules" for m in modules),
        "offloaded_embeddings": hasattr(embeddings, "_unsloth_offload_hooks_installed"),
        "dropout": max((m.p for m in modules if type(m).__name__ == "Dropout"), default=0.0),
    }


def facts_of_trainer(trainer):
    # 2 where a block was compiled with gradients, 1 without; 0 or nothing where it was not.
    compiled = [vars(layer).get("_unsloth_block_checked", 0) for layer in trainer._decoder.layers]
    optimizer = trainer.optimizer
    return {
        "bases": [each.__name__ for each in type(trainer).__mro__],
        "mixed_precision": trainer.accelerator.mixed_precision,
        "scaler": trainer.accelerator.scaler is not None,
        "optimizer": type(getattr(optimizer, "optimizer", optimizer)).__module__,
        "checkpointing": trainer.args.gradient_checkpointing,
        "compiled_blocks": sum(each & 2 > 0 for each in compiled),
        "blocks": len(compiled),
    }


def status_of(arguments):
    from fasttune.cli import main

    try:
        main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def do(work, place):
    if "step" in work:
        from fasttune.models.unsloth import import_unsloth

        import_unsloth()  # before what step.py imports
        import step

        return step.take(work["step"], place)
    return status_of(work["arguments"])


def run(work, place):
    """Do one piece of work with the standard streams of its own."""
    place.with_suffix(".in").write_text(work.get("input", ""), encoding="utf-8")
    sys.stdin = place.with_suffix(".in").open(encoding="utf-8")
    saved = [os.dup(1), os.dup(2)]
    for number, end in ((1, ".out"), (2, ".err")):
        file = os.open(place.with_suffix(end), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    before, began = dict(sitecustomize.counts), time.perf_counter()
    try:
        status = do(work, place)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in zip((1, 2), saved, strict=True):
            os.dup2(file, number)
            os.close(file)
    result = {
        "status": status,
        "seconds": round(time.perf_counter() - began, 1),
        "counts": {key: count - before[key] for key, count in sitecustomize.counts.items()},
        "models": [facts_of_model(each) for each in loaded],
        "trainers": [facts_of_trainer(each) for each in trainers],
        "before_unsloth": sitecustomize.before_unsloth,
    }
    loaded.clear()
    trainers.clear()
    place.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    for number, work in enumerate(json.load(sys.stdin)):
        run(work, Path(sys.argv[1]) / str(number))
