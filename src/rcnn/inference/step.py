"""One batch through the detector: precision, device and compilation of inference."""

from collections.abc import Callable
from typing import Any

import torch

from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch, Detections

MOST_PROGRAMS = 64  # canvases, models and phases of a process; PyTorch's own limit of 8 would stop at the ninth canvas


def compiled(function: Callable[..., Any], backend: str | None) -> Callable[..., Any]:
    """The function compiled whole, once per canvas; as it is where `backend` is None."""
    if backend is None:
        return function
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, MOST_PROGRAMS)
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


class DetectStep:
    """Runs the model on batches; the result is on the CPU.

    Args:
        bf16: autocast of convolutions and matrix products.
        backend: of torch.compile; None runs eagerly.
    """

    def __init__(
        self, model: FasterRCNN, *, device: torch.device, bf16: bool = False, backend: str | None = None
    ) -> None:
        self.model = place(model, device).eval()
        self.device = device
        self.bf16 = bf16
        self.forward = compiled(model, backend)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Detections:
        images, image_size, scale = (
            x.to(self.device, non_blocking=True) for x in (batch.images, batch.image_size, batch.scale)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            detections = self.forward(images, image_size, scale)
        return Detections(*(x.cpu() for x in detections))


def place(model: FasterRCNN, device: torch.device) -> FasterRCNN:
    """The model on the device, its convolution weights channels-last, as the images come."""
    return model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: stubs lack it
