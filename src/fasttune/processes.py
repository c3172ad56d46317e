"""Several processes of one run, one per GPU, as torchrun and `accelerate launch` start them.

The launcher's environment holds their number and ranks. With one process, nothing here does
anything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Timeout of waiting for other processes: the first one answers the sample rows alone."""

connected = False
_connections = itertools.count()
_group: object = None
"""The last process group, kept so that accelerate's wrapper of the model does not free it. The
wrapper would wait for the group's threads while it holds the interpreter's lock, and a thread that
still frees a tensor waits for that lock."""


class Gone(FasttuneError):
    """Another process of the run has ended."""


def count() -> int:
    """The number of processes, on all machines."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def local_count() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if count() > 1 else 1


def first() -> bool:
    """Whether this is the process that writes files, prints and generates."""
    return rank() == 0


def speaks(error: FasttuneError | None = None) -> bool:
    """Whether this process prints an error: the first one does, and a connected one does if the
    error is its own."""
    return first() or (connected and not isinstance(error, Gone))


def require_one(what: str) -> None:
    """Refuse several processes for `what`, as "a benchmark": each would do everything."""
    if count() > 1:
        raise FasttuneError(
            f"{count()} processes were started, but {what} needs one",
            f"WORLD_SIZE={count()}",
            "start it without torchrun or accelerate launch; CUDA_VISIBLE_DEVICES chooses the GPU",
        )


def meet(cuda: bool) -> None:
    """Connect to the other processes, each of which may have a GPU."""
    for name, variable in (
        ("FSDP", "ACCELERATE_USE_FSDP"),
        ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"),
        ("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM"),
    ):
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise FasttuneError(
                f"a run does not divide the model by {name}: each GPU has all of it",
                f"{variable}={os.environ[variable]}",
                "launch it with --multi_gpu alone, or with torchrun; see docs/scale.md",
            )
    if count() == 1:
        return
    global connected
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))
    else:  # accelerate's default, cpu:0, is no device that torch loads a checkpoint to
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if not distributed.is_initialized():
        # gloo beside NCCL: flags and objects stay on the CPU, so that no process waits for a GPU.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            store, *_ = next(rendezvous("env://", timeout=TIMEOUT))
            # The launcher's store keeps its entries, so each connection needs a prefix of its own.
            store = distributed.PrefixStore(f"fasttune-{next(_connections)}", store)
            distributed.init_process_group(
                backend, store=store, rank=rank(), world_size=count(), timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise FasttuneError(
                "the processes of the run could not connect to each other",
                f"process {rank()} of {count()}: {error}",
                "start all of them with one launcher; see docs/scale.md",
            ) from error
    connected = True


def part() -> None:
    """Disconnect from the other processes."""
    global connected, _group
    if connected:
        from torch import distributed

        _group = distributed.group.WORLD
        distributed.destroy_process_group()
        connected = False


def share(value: T) -> T:
    """Send the first process's value to all."""
    values = [value]
    if connected:
        with _collective() as distributed:
            distributed.broadcast_object_list(values, src=0)
    return values[0]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Put the sum of all processes' tensors into `tensor`, and return it."""
    if connected:
        with _collective() as distributed:
            distributed.all_reduce(tensor)
    return tensor


def any_of(flags: Sequence[bool]) -> list[bool]:
    """Whether each flag is set in any process."""
    if not connected:
        return list(flags)
    import torch

    counts = add_up(torch.tensor(flags, dtype=torch.int32))
    return [count > 0 for count in counts.tolist()]


def wait() -> None:
    """Wait until all processes call this."""
    any_of([False])


@contextmanager
def one_after_another() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find what it has made."""
    if not first():
        wait()
    yield
    if first():
        wait()


@contextmanager
def _collective() -> Iterator[Any]:
    """torch.distributed, whose error becomes one that says that another process has ended."""
    from torch import distributed

    try:
        yield distributed
    except RuntimeError as error:
        raise Gone(
            "another process of the run has ended",
            f"process {rank()} of {count()} waited for it: {str(error).splitlines()[0]}",
            "read its output for the reason; --resume continues from the last checkpoint",
        ) from error
