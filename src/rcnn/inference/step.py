"""One batch through the model: precision, device, compilation and capture of inference."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn.inference.capture import Captured
from rcnn.inference.upload import Upload
from rcnn.models.faster_rcnn import FasterRCNN, ProposalRules
from rcnn.models.layers import fuse
from rcnn.structures import Batch, Detections, Proposals

MOST_PROGRAMS = 64  # canvases, models and phases of a process; PyTorch's own limit of 8 would stop at the ninth canvas


def compiled(function: Callable[..., Any], backend: str | None) -> Callable[..., Any]:
    """The function compiled whole, once per canvas; as it is where `backend` is None."""
    if backend is None:
        return function
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, MOST_PROGRAMS)
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


class ModelStep:
    """Runs a program of the model on batches; the results are on the CPU.

    It runs a copy that shares the model's weights until the first batch, which folds, casts and packs them: change no
    weight in between. Whoever drops the model then holds the weights once.

    Args:
        program: what a model runs, of (images, image_size, scale, proposals or None); for example the model itself.
        bf16: convolutions and matrix products in bfloat16.
        winograd: on a CPU, large convolutions in float32 by Winograd's method; see `ops.winograd`.
        backend: of torch.compile, which fuses by itself; None runs eagerly.
    """

    def __init__(
        self,
        model: FasterRCNN,
        program: Callable[[FasterRCNN], Callable[..., tuple[Tensor, ...]]],
        *,
        device: torch.device,
        bf16: bool = False,
        winograd: bool = False,
        backend: str | None = None,
    ) -> None:
        self.model = place(model, device).eval()
        self.bf16 = bf16  # for layers that are not fused
        if backend is None:
            self.model = fused_copy(self.model, torch.bfloat16 if bf16 else torch.float32, winograd=winograd)
        self.device = device
        self.upload = Upload(device)
        self.forward = Captured(compiled(program(self.model), backend), device)

    @torch.no_grad()
    def run(self, batch: Batch) -> tuple[Tensor, ...]:
        """The program's tensors. A batch without proposals leaves them to the RPN."""
        batch = self.upload(batch)
        proposals = None
        if batch.proposals.shape[1]:
            proposals = Proposals(batch.proposals, batch.proposals_valid.float(), batch.proposals_valid)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.forward(batch.images, batch.image_size, batch.scale, proposals)
        return tuple(x.cpu() for x in found)


class DetectStep(ModelStep):
    """The whole detector; see ModelStep."""

    def __init__(
        self,
        model: FasterRCNN,
        *,
        device: torch.device,
        bf16: bool = False,
        winograd: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(model, lambda own: own, device=device, bf16=bf16, winograd=winograd, backend=backend)

    def __call__(self, batch: Batch) -> Detections:
        return Detections(*self.run(batch))


class ProposeStep(ModelStep):
    """Backbone and RPN only, by the rules given; see ModelStep."""

    def __init__(
        self,
        model: FasterRCNN,
        rules: ProposalRules,
        *,
        device: torch.device,
        bf16: bool = False,
        winograd: bool = False,
        backend: str | None = None,
    ) -> None:
        def program(own: FasterRCNN) -> Callable[..., Proposals]:
            def propose(images: Tensor, image_size: Tensor, scale: Tensor, given: None) -> Proposals:
                rpn = own.rpn(own.features(images, image_size), image_size)
                return own.propose(rpn, image_size, scale, rules)

            return propose

        super().__init__(model, program, device=device, bf16=bf16, winograd=winograd, backend=backend)

    def __call__(self, batch: Batch) -> Proposals:
        return Proposals(*self.run(batch))


def place(model: FasterRCNN, device: torch.device) -> FasterRCNN:
    """The model on the device, its convolution weights channels-last, as the images come."""
    return model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: stubs lack it


def fused_copy(model: FasterRCNN, dtype: torch.dtype, *, winograd: bool = False) -> FasterRCNN:
    """A copy of the modules, but not of the weights, whose layers are fused for inference in the dtype."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    fuse(copied, dtype, winograd=winograd)
    return copied
