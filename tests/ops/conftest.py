"""The implementations behind `rcnn.ops`: each test that takes `kernels` runs once with each."""

import importlib
import importlib.util
from collections.abc import Iterator

import pytest

NATIVE = "rcnn.ops.kernels.native._native"


def implementations() -> list[str]:
    """The reference, and the compiled kernels for each instruction set that this processor runs."""
    if importlib.util.find_spec(NATIVE) is None:
        return ["reference"]
    return ["reference", *importlib.import_module(NATIVE).instruction_sets()]


@pytest.fixture(params=implementations())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the implementation in force."""
    if request.param == "reference":
        monkeypatch.setenv("RCNN_KERNELS", "reference")
        yield request.param
        return
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    native = importlib.import_module(NATIVE)
    native.choose(request.param)
    yield request.param
    native.choose(native.instruction_sets()[0])
