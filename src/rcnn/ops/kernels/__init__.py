"""The fast kernels behind `rcnn.ops`: C++ for the CPU (`native`), Triton for GPUs (`on_triton`).

Both offer the same functions. Imported by `rcnn.ops` and by nothing else.
"""

import ctypes
import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

NATIVE, TRITON = "rcnn.ops.kernels.native._native", "rcnn.ops.kernels.on_triton"
SLOW = {
    NATIVE: "rcnn: the compiled CPU kernels are missing ({reason}); NMS and RoI pooling run in plain PyTorch, with "
    "equal results but 10 to 100 times slower. To get them, reinstall rcnn with a C++ compiler (g++ or clang++) and "
    "without RCNN_NATIVE=0; to silence this, set RCNN_KERNELS=reference.",
    TRITON: "rcnn: Triton is missing ({reason}); NMS and RoI pooling run in plain PyTorch, with equal results but "
    "many times slower, and steps are not captured as CUDA graphs. To get it, pip install triton; to silence this, "
    "set RCNN_KERNELS=reference.",
}


@cache
def _load(name: str) -> ModuleType | None:
    """Import the kernels, or warn once of what their absence costs."""
    try:
        module = import_module(name)
    except ImportError as error:
        warnings.warn(SLOW[name].format(reason=error), RuntimeWarning, stacklevel=4)
        return None
    if name == NATIVE:
        module.use_team(_torch_team())
    return module


def _torch_team() -> int:
    """The address of the function that runs work on PyTorch's own OpenMP threads; 0: this PyTorch has none."""
    run = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    return (ctypes.cast(run, ctypes.c_void_p).value or 0) if run else 0


def uses_triton(device: torch.device) -> bool:
    """Whether Triton's kernels are those of the device; on a CPU, where they are told to be interpreted."""
    return device.type == "cuda" or os.environ.get("RCNN_KERNELS") == "triton"


def module_for(device: torch.device) -> ModuleType | None:
    """Return the kernels that serve the device, if they exist and `RCNN_KERNELS` does not forbid them."""
    if os.environ.get("RCNN_KERNELS") == "reference":
        return None
    if uses_triton(device):
        return _load(TRITON)
    return _load(NATIVE) if device.type == "cpu" else None
