"""The implementations behind `rcnn.ops`: each test that takes `kernels` runs once with each."""

import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.ops import kernels as loader

NATIVE = "rcnn.ops.kernels.native._native"
INTERPRETED = not torch.cuda.is_available()  # Triton's kernels


def implementations() -> list[str]:
    """The reference, Triton, and the compiled kernels for each instruction set that this processor runs."""
    found = ["reference"]
    if importlib.util.find_spec("triton"):
        found.append("triton")
    if importlib.util.find_spec(NATIVE):
        found += importlib.import_module(NATIVE).instruction_sets()
    return found


def interpreted(kernels: str) -> bool:
    """Whether the implementation is so slow (ten milliseconds a program) that a case must be small."""
    return kernels == "triton" and INTERPRETED


class ThereAndBack(ModuleType):
    """Triton's kernels for tests whose tensors are on the CPU: runs them where they can run."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__("there_and_back")
        self.module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)

        def call(*arguments: Any) -> None:
            moved = [x if INTERPRETED or not isinstance(x, Tensor) else x.cuda() for x in arguments]
            with np.errstate(all="ignore"):  # inf - inf is no news to a kernel
                kernel(*moved)
            for x, there in zip(arguments, moved, strict=True):
                if isinstance(x, Tensor) and x is not there:
                    x.copy_(there)

        return call


@pytest.fixture(params=implementations())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the implementation in force."""
    if request.param == "reference":
        monkeypatch.setenv("RCNN_KERNELS", "reference")
        yield request.param
        return
    if request.param == "triton":
        monkeypatch.setenv("RCNN_KERNELS", "triton")
        if INTERPRETED:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
        load = loader._load
        monkeypatch.setattr(loader, "_load", lambda name: ThereAndBack(load(name)))
        yield request.param
        return
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    native = importlib.import_module(NATIVE)
    native.choose(request.param)
    yield request.param
    native.choose(native.instruction_sets()[0])


@pytest.fixture
def same_bits(kernels: str) -> Iterator[None]:
    """Gradients repeat bit for bit; on a GPU they do so only where PyTorch is asked for it."""
    torch.use_deterministic_algorithms(kernels == "triton" and not INTERPRETED)
    yield
    torch.use_deterministic_algorithms(False)
