"""One batch through the model: precision, device, compilation and capture of inference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcnn.inference.capture import Captured
from rcnn.inference.upload import Upload
from rcnn.models.faster_rcnn import FasterRCNN, ProposalRules
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

    Args:
        program: of (images, image_size, scale, proposals or None), for example the model itself.
        bf16: autocast of convolutions and matrix products.
        backend: of torch.compile; None runs eagerly.
    """

    def __init__(
        self,
        model: FasterRCNN,
        program: Callable[..., tuple[Tensor, ...]],
        *,
        device: torch.device,
        bf16: bool = False,
        backend: str | None = None,
    ) -> None:
        self.model = place(model, device).eval()
        self.device = device
        self.bf16 = bf16
        self.upload = Upload(device)
        self.forward = Captured(compiled(program, backend), device)

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
        self, model: FasterRCNN, *, device: torch.device, bf16: bool = False, backend: str | None = None
    ) -> None:
        super().__init__(model, model, device=device, bf16=bf16, backend=backend)

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
        backend: str | None = None,
    ) -> None:
        def propose(images: Tensor, image_size: Tensor, scale: Tensor, given: None) -> Proposals:
            rpn = model.rpn(model.features(images, image_size), image_size)
            return model.propose(rpn, image_size, scale, rules)

        super().__init__(model, propose, device=device, bf16=bf16, backend=backend)

    def __call__(self, batch: Batch) -> Proposals:
        return Proposals(*self.run(batch))


def place(model: FasterRCNN, device: torch.device) -> FasterRCNN:
    """The model on the device, its convolution weights channels-last, as the images come."""
    return model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: stubs lack it
