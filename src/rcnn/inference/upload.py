"""Batches to the device: on a GPU from pinned memory and on a stream of its own, while the step before still runs."""

import torch
from torch import Tensor

from rcnn.structures import Batch


class Upload:
    """Copies batches to a device; pictures travel as uint8."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device; the host goes on at once, what is launched next waits for the copy."""
        if self._stream is None:
            return Batch(*(x.to(self.device) for x in batch))
        present = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            there = Batch(*(self._copy(x) for x in batch))
        present.wait_stream(self._stream)
        for x in there:
            x.record_stream(present)  # or the memory could be given away while the step still reads it
        return there

    def _copy(self, x: Tensor) -> Tensor:
        pinned = x.pin_memory() if x.device.type == "cpu" else x
        return pinned.to(self.device, non_blocking=True)
