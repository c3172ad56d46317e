"""A card for a process that has none: Unsloth's accelerator branch, and fasttune's, on a CPU.

    FASTTUNE_REHEARSE=a10g PYTHONPATH=tests/rehearsal UNSLOTH_ALLOW_CPU=1 TRITON_INTERPRET=1 \
        fasttune run ...

Python imports this module by its name when it starts. It answers what Unsloth, accelerate and
fasttune ask a card. Tensors stay on the CPU and torch.cuda.is_available() stays False, so what is
rehearsed is the code that a card's run takes, not the card: no CUDA kernel, no memory of a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from importlib.abc import MetaPathFinder

CARDS = {  # name, bytes, compute capability
    "t4": ("Tesla T4", 16 * 10**9, (7, 5)),
    "a10g": ("NVIDIA A10G", 24 * 10**9, (8, 6)),
    "h100": ("NVIDIA H100 80GB HBM3", 80 * 10**9, (9, 0)),
}


def answer_for_torch(torch):
    name, memory, capability = CARDS[os.environ["FASTTUNE_REHEARSE"]]
    facts = types.SimpleNamespace(
        name=name,
        total_memory=memory,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=80,
        gcnArchName="",
    )
    torch.cuda.get_device_properties = lambda *args, **kwargs: facts
    torch.cuda.get_device_capability = lambda *args, **kwargs: capability
    torch.cuda.get_device_name = lambda *args, **kwargs: name
    torch.cuda.current_device = lambda: 0
    empty = torch.empty  # there is no pinned memory without a card
    torch.empty = lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs)
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: capability >= (8, 0)


def answer_for_fasttune(machine):
    """The choices are a card's; tensors, and the memory that is measured, stay this machine's."""
    name, memory, capability = CARDS[os.environ["FASTTUNE_REHEARSE"]]
    machine.this_device = lambda: machine.Device(
        name, "cuda", memory, bf16=capability >= (8, 0), capability=capability
    )


def answer_for_accelerate(accelerator):
    """accelerate has neither autocast in fp16 nor a loss scaler where tensors are on a CPU."""
    begin = accelerator.Accelerator.__init__

    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.state.mixed_precision == "fp16":
            import torch

            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu")

    accelerator.Accelerator.__init__ = __init__


def answer_for_transformers(training_args):
    capability = CARDS[os.environ["FASTTUNE_REHEARSE"]][2]
    training_args.is_torch_bf16_gpu_available = lambda: capability >= (8, 0)


ANSWERS = {
    "torch": answer_for_torch,
    "fasttune.machine": answer_for_fasttune,
    "transformers.training_args": answer_for_transformers,
    "accelerate.accelerator": answer_for_accelerate,
}


class AfterImport(MetaPathFinder):
    """Gives a module its answers as soon as it has been executed."""

    def find_spec(self, name, path, target=None):
        answer = ANSWERS.pop(name, None)
        if answer is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            answer(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FASTTUNE_REHEARSE"):
    sys.meta_path.insert(0, AfterImport())
