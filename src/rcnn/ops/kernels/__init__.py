"""The fast kernels behind `rcnn.ops`: C++ for the CPU (`native`). Imported by `rcnn.ops` and by nothing else."""

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

SLOW = (
    "rcnn: the compiled CPU kernels are missing ({reason}); NMS and RoI pooling run in plain PyTorch, with equal "
    "results but 10 to 100 times slower. To get them, reinstall rcnn with a C++ compiler (g++ or clang++) and without "
    "RCNN_NATIVE=0; to silence this, set RCNN_KERNELS=reference."
)


@cache
def _load() -> ModuleType | None:
    """Import the compiled module, or warn once of what its absence costs."""
    try:
        return import_module("rcnn.ops.kernels.native._native")
    except ImportError as error:
        warnings.warn(SLOW.format(reason=error), RuntimeWarning, stacklevel=4)
        return None


def native_module(tensor: Tensor) -> ModuleType | None:
    """Return the compiled module if it exists, serves the tensor's device and `RCNN_KERNELS` does not forbid it."""
    if tensor.device.type != "cpu" or os.environ.get("RCNN_KERNELS") == "reference":
        return None
    return _load()
