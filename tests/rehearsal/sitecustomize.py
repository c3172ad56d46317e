"""A card for a process that has none: Unsloth's accelerator branch, and fasttune's, on a CPU.

    FASTTUNE_REHEARSE=a10g PYTHONPATH=tests/rehearsal fasttune run ...

Python imports this module by its name when it starts. It answers what Unsloth, bitsandbytes,
accelerate and fasttune ask a card; transformers and torch itself are told nothing and leave tensors
on the CPU. So what is rehearsed is the code that a card's run takes, not the card:

- Unsloth's loader, its replacement of TRL's trainer, its compiled blocks and its checkpointing run;
- its Triton kernels run in Triton's interpreter;
- what Dynamo captures of the blocks is compiled for the CPU, or with FASTTUNE_REHEARSE_COMPILE set
  to eager run as it is captured, which takes a fourth of the time;
- kernels of CUDA are bitsandbytes' and torch's for a CPU; copies to the host wait for nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from contextlib import nullcontext
from importlib.abc import MetaPathFinder

CARDS = {  # name, bytes, compute capability
    "t4": ("Tesla T4", 16 * 10**9, (7, 5)),
    "a10g": ("NVIDIA A10G", 24 * 10**9, (8, 6)),
    "h100": ("NVIDIA H100 80GB HBM3", 80 * 10**9, (9, 0)),
}

NAME, MEMORY, CAPABILITY = CARDS[os.environ.get("FASTTUNE_REHEARSE") or "a10g"]

counts = {"nf4": 0, "offloaded": 0, "connections": 0}
"""How often Unsloth's kernel that dequantises NF4 was launched, how often it moved what a block
begins with to the host, and how often anything looked up or called another machine."""


def count_connections(event, arguments):
    internet = event == "socket.connect" and isinstance(arguments[1], tuple)
    if internet or event == "socket.getaddrinfo":
        counts["connections"] += 1


def unsloth_asks():
    """Whether the function that is two calls up is Unsloth's: others would move tensors."""
    asking = sys._getframe(2).f_globals.get("__name__", "")
    return asking.partition(".")[0] in ("unsloth", "unsloth_zoo")


def current_device():
    """The first card, or what the tensors that are dequantised say of theirs: no number."""
    return None if sys._getframe(1).f_globals["__name__"] == "unsloth.kernels.nf4" else 0


class Stream:
    """Work on a CPU is done in the order it is asked for."""

    def __init__(self, *args, **kwargs):
        self.device = "cpu"

    def nothing(self, *args, **kwargs):
        return self

    wait_stream = wait_event = record_event = record = wait = synchronize = nothing
    __enter__ = __exit__ = nothing

    def query(self):
        return True


def answer_for_torch(torch):
    facts = types.SimpleNamespace(
        name=NAME,
        total_memory=MEMORY,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        multi_processor_count=80,
        gcnArchName="",
        is_integrated=0,
    )
    cuda = torch.cuda
    cuda.is_available = lambda: unsloth_asks()
    cuda.device_count = lambda: int(unsloth_asks())
    cuda.current_device = current_device
    cuda.get_device_properties = lambda *args, **kwargs: facts
    cuda.get_device_capability = lambda *args, **kwargs: CAPABILITY
    cuda.get_device_name = lambda *args, **kwargs: NAME
    cuda.is_bf16_supported = lambda *args, **kwargs: CAPABILITY >= (8, 0)
    cuda.mem_get_info = lambda *args, **kwargs: (MEMORY, MEMORY)
    cuda.Stream = cuda.Event = Stream
    cuda.current_stream = cuda.default_stream = Stream
    cuda.stream = lambda stream: nullcontext()
    cuda.synchronize = cuda.empty_cache = lambda *args, **kwargs: None
    torch._C._cuda_getCurrentRawStream = lambda index: 0
    torch.empty = on_the_cpu(torch.empty)
    if backend := os.environ.get("FASTTUNE_REHEARSE_COMPILE"):
        torch.compile = compile_with(torch.compile, backend)


def on_the_cpu(create):
    """Unsloth names the card by its number or as cuda:0, and pins memory of the host."""

    @functools.wraps(create)
    def created(*args, pin_memory=False, device=None, **kwargs):
        card = isinstance(device, int) or str(device).startswith("cuda")
        return create(*args, device="cpu" if card else device, **kwargs)

    return created


def compile_with(compile, backend):
    @functools.wraps(compile)
    def compiled(model=None, *, options=None, mode=None, **settings):
        return compile(model, **{**settings, "backend": backend})

    return compiled


def answer_for_fasttune(machine):
    """The choices are a card's; tensors, and the memory that is measured, stay this machine's."""
    machine.this_device = lambda: machine.Device(
        NAME, "cuda", MEMORY, bf16=CAPABILITY >= (8, 0), capability=CAPABILITY
    )


def answer_for_accelerate(accelerator):
    """accelerate has neither autocast in fp16 nor a loss scaler where tensors are on a CPU."""
    begin = accelerator.Accelerator.__init__

    @functools.wraps(begin)
    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.state.mixed_precision == "fp16":
            import torch

            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu")

    accelerator.Accelerator.__init__ = __init__


def answer_for_transformers(training_args):
    training_args.is_torch_bf16_gpu_available = lambda: CAPABILITY >= (8, 0)


class Kernel:
    """Stands for a function of bitsandbytes' CUDA library. Unsloth looks whether it is there, and
    without it loads the model unquantised."""

    restype = None

    def __init__(self, name):
        self.name = name

    def __call__(self, *args):
        raise RuntimeError(f"{self.name} needs a card")


def answer_for_bitsandbytes(cextension):
    class Library:
        def __init__(self, found):
            self._found = found

        def __getattr__(self, name):
            function = getattr(self._found, name)
            return function if hasattr(function, "restype") else Kernel(name)

    cextension.lib = Library(cextension.lib)


def answer_for_triton(driver):
    driver.libcuda_dirs = lambda: ["/"]


def answer_for_unsloth(device_type):
    """It has made up its mind. The variable would also keep it from replacing TRL's trainer."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"


def answer_for_nf4(nf4):
    """The kernel, counted, in few large pieces: the interpreter takes a millisecond for each."""
    launch = nf4._launch

    def counted(*args, **kwargs):
        counts["nf4"] += 1
        return launch(*args, **kwargs)

    nf4._launch = counted
    nf4._traced_guard = lambda device: nullcontext()
    nf4._CONFIG_OVERRIDE = (1 << 16, 4, False, False, 0)


def answer_for_checkpointing(checkpointing):
    """What blocks begin with is offloaded from 16 KB on instead of 2 MB: in the tiny models it is
    smaller. A tensor on the CPU has no number of a device, so None stands for the first one."""
    initialize = checkpointing.initialize_unsloth_gradient_checkpointing
    slots = checkpointing._PerDeviceSlots
    item = slots.__getitem__

    @functools.wraps(initialize)
    def initialized(*args, **kwargs):
        initialize(*args, **kwargs)
        checkpointing.MINIMUM_SIZE = 1 << 14
        checkpointing.NEXT_BUFFER_SLOT = {None: 0}
        for name in ("BUFFER_EVENTS_A", "BUFFER_EVENTS_B"):
            setattr(checkpointing, name, {None: Stream()})

    slots.__getitem__ = lambda self, index: item(self, index or 0)
    checkpointing.initialize_unsloth_gradient_checkpointing = initialized
    lease = checkpointing._CpuSlotLease.__init__

    def counted(*args, **kwargs):
        counts["offloaded"] += 1
        lease(*args, **kwargs)

    checkpointing._CpuSlotLease.__init__ = counted


def answer_for_linear4bit(override):
    """The kernel takes tensors of the card: here those of the CPU."""
    code = override._eligible.__code__
    constants = tuple("cpu" if each == "cuda" else each for each in code.co_consts)
    override._eligible.__code__ = code.replace(co_consts=constants)


ANSWERS = {
    "torch": answer_for_torch,
    "fasttune.machine": answer_for_fasttune,
    "transformers.training_args": answer_for_transformers,
    "accelerate.accelerator": answer_for_accelerate,
    "bitsandbytes.cextension": answer_for_bitsandbytes,
    "triton.backends.nvidia.driver": answer_for_triton,
    "unsloth.device_type": answer_for_unsloth,
    "unsloth_zoo.gradient_checkpointing": answer_for_checkpointing,
    "unsloth.kernels.nf4": answer_for_nf4,
    "unsloth.kernels.bnb_override": answer_for_linear4bit,
}
"""Module -> what is done to it as soon as it has been executed."""


before_unsloth: list[str] = []
"""Which of the libraries that Unsloth patches were imported before it."""


class AfterImport(MetaPathFinder):
    """Gives the answers. Libraries look for others without importing them: an answer stays until
    its module is executed."""

    def __init__(self):
        self._looking = ""

    def find_spec(self, name, path, target=None):
        if name == "unsloth":
            patched = ("transformers", "trl", "peft")
            before_unsloth[:] = [each for each in patched if each in sys.modules]
        if name not in ANSWERS or name == self._looking:
            return None
        self._looking = name
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = ""
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if answer := ANSWERS.pop(name, None):
                answer(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FASTTUNE_REHEARSE"):
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # take the branch of CUDA, said of no card
    os.environ["TRITON_INTERPRET"] = "1"
    sys.meta_path.insert(0, AfterImport())
    sys.addaudithook(count_connections)
