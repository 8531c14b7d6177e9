"""The functions of the compiled CPU module, for tensors on a GPU; the last argument, threads, counts for nothing."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from rcnn.ops.kernels import nms_triton, roi_triton


def _on_its_device(function: Callable[..., None]) -> Callable[..., None]:
    """Triton launches on the current device, which need not be that of the tensors."""

    @wraps(function)
    def launch(first: Tensor, *arguments: Any) -> None:
        with torch.cuda.device_of(first):
            function(first, *arguments)

    return launch


nms = _on_its_device(nms_triton.nms)
roi_align = _on_its_device(roi_triton.roi_align)
roi_align_backward = _on_its_device(roi_triton.roi_align_backward)
roi_pool = _on_its_device(roi_triton.roi_pool)
roi_pool_backward = _on_its_device(roi_triton.roi_pool_backward)
