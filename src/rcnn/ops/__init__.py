"""Pure functions of tensors: boxes, anchors, sampling, non-maximum suppression, RoI operators."""

import torch

from rcnn.ops import kernels


def has_kernels(device: torch.device) -> bool:
    """Whether NMS and the RoI operators have fast kernels there; the references may ask the host for sizes."""
    return kernels.module_for(device) is not None
