"""Gradients of the processes of one machine: each writes its own into memory that all of them read."""

import mmap
import os
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist

from rcnn import processes
from rcnn.ops.update import copy_finite

MOST = 8  # processes; each reads the gradients of all
ALIGNED = 64  # bytes


def can_exchange(device: torch.device) -> bool:
    """Whether the processes can do without messages: they are all on this machine, on its CPU."""
    world = processes.world()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == world
    return 1 < world <= MOST and here and device.type == "cpu" and hasattr(os, "memfd_create")


class Exchange:
    """Memory for the gradients of every process, which all of them see.

    The update reads them where they lie, in the order of the ranks, so all processes compute the same bits. Nothing is
    sent; the processes wait for each other twice a step, before they read and before they write again.

    Args:
        parameters: the same in all processes; every gradient is stored as its parameter is.
        dtype: of the gradients; bfloat16 halves what is moved.
    """

    def __init__(self, parameters: Iterable[Tensor], dtype: torch.dtype) -> None:
        parameters = list(parameters)
        size = sum(_bytes(p, dtype) for p in parameters)
        places = [_split(memory, parameters, dtype) for memory in _shared_memory(size)]
        self.places = dict(zip(parameters, zip(*places, strict=True), strict=True))

    def __call__(self, gradients: dict[Tensor, Tensor], loss: Tensor) -> bool:
        """Give all processes the gradients of this one, and wait until theirs are there.

        Returns:
            Whether the losses and gradients of all processes are finite.
        """
        own = processes.rank()
        finite = bool(loss.isfinite())
        for parameter, gradient in gradients.items():
            finite &= copy_finite(gradient, self.places[parameter][own])
        everywhere = torch.tensor([int(finite)])
        dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return bool(everywhere)

    def done(self) -> None:
        """Wait until all processes have read what the next call overwrites."""
        dist.barrier()


def _bytes(parameter: Tensor, dtype: torch.dtype) -> int:
    return -(-parameter.numel() * dtype.itemsize // ALIGNED) * ALIGNED


def _split(memory: Tensor, parameters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A piece of the memory for the gradient of each parameter."""
    pieces = memory.split([_bytes(p, dtype) for p in parameters])
    flat = [piece.view(dtype)[: p.numel()] for piece, p in zip(pieces, parameters, strict=True)]
    return [x.as_strided(p.shape, p.stride()) for x, p in zip(flat, parameters, strict=True)]


def _shared_memory(size: int) -> list[Tensor]:
    """As many bytes for each process, seen by all.

    It is no file of /dev/shm, of which containers have little: the others open it where the system shows it to them.
    """
    own = os.memfd_create("rcnn gradients")
    os.ftruncate(own, size)
    addresses = processes.gather(torch.tensor([os.getpid(), own])).tolist()
    maps = []
    for process, number in addresses:
        file = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
        maps.append(mmap.mmap(file, size))
        os.close(file)
    dist.barrier()
    os.close(own)
    return [torch.frombuffer(each, dtype=torch.uint8) for each in maps]
