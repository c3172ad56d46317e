"""One run in several processes, one for each GPU, as torchrun and `accelerate launch` start them.

The launcher's environment says how many there are and which one this is. They meet where training
begins, and talk through torch.distributed. In a single process all of this does nothing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from fasttune.errors import FasttuneError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long one waits for the others: the first one answers the sample rows alone, and may load more
slowly."""

met = False
"""Whether this process has met the others."""
_meetings = itertools.count()
_group: object = None
"""The group of the last meeting, kept for its end. The wrapper that accelerate puts around the
model refers to it from C++; if that were the last to do so, it would wait for the group's threads
while it holds the interpreter's lock, and a thread that still frees a tensor waits for the lock."""


class Gone(FasttuneError):
    """Another process of the run has ended, and may have said why."""


def count() -> int:
    """How many processes the launcher has started, on all machines."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0) if count() > 1 else 0


def local_count() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if count() > 1 else 1


def first() -> bool:
    """Whether this is the process that writes, prints and answers for all."""
    return rank() == 0


def speaks(error: FasttuneError | None = None) -> bool:
    """Whether this process tells a person what went wrong: the first one does, and any other with
    what went wrong there alone, after they have met."""
    return first() or (met and not isinstance(error, Gone))


def require_one(what: str) -> None:
    """Refuse to be one of several processes: each would do all of it.

    Args:
        what: that takes one process, as "a benchmark".

    Raises:
        FasttuneError: a launcher such as torchrun started more than one.
    """
    if count() > 1:
        raise FasttuneError(
            f"{count()} processes were started, and {what} takes one",
            f"WORLD_SIZE={count()}",
            "start it without torchrun or accelerate launch; CUDA_VISIBLE_DEVICES chooses the GPU",
        )


def meet(cuda: bool) -> None:
    """Wait for the other processes; from here on they can talk.

    Args:
        cuda: whether each has a GPU.

    Raises:
        FasttuneError: the launcher asks to divide the model, which a run does not, or does not say
            where to meet.
    """
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
    global met
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if cuda:
        torch.cuda.set_device(local_rank())
    else:  # accelerate would call it cpu:0, which torch does not load a checkpoint to
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if not distributed.is_initialized():
        # gloo beside NCCL: what the processes agree on is on the CPU, and no GPU is waited for.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        try:
            store, *_ = next(rendezvous("env://", timeout=PATIENCE))
            # A name for each meeting: the launcher's store keeps what was said at the last one.
            store = distributed.PrefixStore(f"fasttune-{next(_meetings)}", store)
            distributed.init_process_group(
                backend, store=store, rank=rank(), world_size=count(), timeout=PATIENCE
            )
        except (RuntimeError, ValueError) as error:
            raise FasttuneError(
                "the processes of the run do not meet",
                f"process {rank()} of {count()}: {error}",
                "start all of them with one launcher; see docs/scale.md",
            ) from error
    met = True


def part() -> None:
    """Take leave of the others: nothing is said any more."""
    global met, _group
    if met:
        from torch import distributed

        _group = distributed.group.WORLD
        distributed.destroy_process_group()
        met = False


def share(value: T) -> T:
    """The first process's value, in all of them."""
    values = [value]
    if met:
        from torch import distributed

        with _talking():
            distributed.broadcast_object_list(values, src=0)
    return values[0]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors, of one shape and type, put into `tensor`."""
    if met:
        from torch import distributed

        with _talking():
            distributed.all_reduce(tensor)
    return tensor


def any_of(flags: Sequence[bool]) -> list[bool]:
    """For each flag whether it is set in any process."""
    if not met:
        return list(flags)
    import torch
    from torch import distributed

    found = torch.tensor(flags, dtype=torch.int32)
    with _talking():
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return [bool(each) for each in found.tolist()]


def wait() -> None:
    """Wait until all processes are here."""
    any_of([False])


@contextmanager
def one_after_another() -> Iterator[None]:
    """The first process does the block alone, then the others: they find what it has made."""
    if not first():
        wait()
    yield
    if first():
        wait()


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Gone(
            "another process of the run has ended",
            f"process {rank()} of {count()} waited for it: {str(error).splitlines()[0]}",
            "what it said tells why; --resume goes on from the last checkpoint",
        ) from error
