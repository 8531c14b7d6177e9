"""How processes share the images of a step, and the gradient that they make together."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rcnn import processes
from rcnn.structures import Batch

# PyTorch 2.13 gave the argument another name.
_NEW_NAME = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
SYNC_BUFFERS = "forward_sync_buffers" if _NEW_NAME else "broadcast_buffers"
Compute = Callable[[Batch], dict[str, Tensor]]


class Share(NamedTuple):
    """What each process computes of a step: so many passes of so many places, some of them empty perhaps."""

    images: int  # of the step, of all processes together
    passes: int
    size: int  # places of a pass
    world: int

    @property
    def places(self) -> int:
        """Of a process in a step."""
        return self.passes * self.size

    @property
    def weight(self) -> float:
        """Of the mean over the places of all processes, which makes it the mean over the images."""
        return self.world * self.places / self.images

    @property
    def idle(self) -> int:
        """Processes whose places are all empty."""
        return self.world - math.ceil(self.images / self.places)


def share_step(images: int, most: int, world: int) -> Share:
    """Shares so many images out to processes that take at most `most` at once, in as few passes as they can."""
    each = math.ceil(images / world)
    passes = math.ceil(each / most)
    return Share(images, passes, math.ceil(each / passes), world)


def own_share(batch: int, total_batch: int) -> Share:
    """The share of the processes there are in a step of `total_batch` images; 0: of `batch` images for each."""
    world = processes.world()
    return share_step(total_batch or batch * world, batch, world)


class Loss(nn.Module):
    """Model and loss as one module, whose forward is the loss: what DistributedDataParallel wants."""

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.compute(batch)


class Gradients:
    """Adds the gradient of a step's loss to the model, pass by pass and with those of the other processes.

    Args:
        compute: the scalars of a batch, means over its places, among them `loss`.
        share: None: the batch is one pass, and all of the step.
        reduces: whether the gradient is to be the mean over the processes, by messages; else it is this process's own.
    """

    def __init__(self, model: nn.Module, compute: Compute, share: Share | None = None, *, reduces: bool = True) -> None:
        self.share = share
        self.compute: Compute = compute
        self.parallel = None
        if processes.world() > 1 and reduces:
            # Buffers are constants; gradients are reduced in buckets while the backward pass goes on.
            options: dict[str, Any] = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
            self.compute = self.parallel = DistributedDataParallel(Loss(model, compute), **options)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The scalars of the batch; their mean over the processes is the mean over the images of the step."""
        if self.share is None:
            return self._backward(batch, 1.0)
        passes, size, weight = self.share.passes, self.share.size, self.share.weight
        if passes == 1:
            return self._backward(batch, weight)
        parts = [Batch(*(x[i * size : (i + 1) * size] for x in batch)) for i in range(passes)]
        with self.parallel.no_sync() if self.parallel else nullcontext():
            scalars = [self._backward(part, weight / passes) for part in parts[:-1]]
        scalars.append(self._backward(parts[-1], weight / passes))
        return {name: torch.stack([each[name] for each in scalars]).sum(0) for name in scalars[0]}

    def _backward(self, batch: Batch, weight: float) -> dict[str, Tensor]:
        scalars = self.compute(batch)
        if weight != 1:
            scalars = {name: value * weight for name, value in scalars.items()}
        loss = scalars["loss"]
        if self.parallel:  # a loss that is not finite must reach the other processes, which skip the update too
            loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        loss.backward()
        return {name: value.detach() for name, value in scalars.items()}
