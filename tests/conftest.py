"""What every test gets: fixed seeds, one thread per worker, checked shapes, and the shared data if it is there."""

import importlib
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; child processes inherit it
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["RCNN_CACHE"] = ""  # nothing is remembered from test to test

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("RCNN_SHARED", CHECKOUT.parent / "shared"))

with suppress(ImportError), pytest.MonkeyPatch.context() as environment:
    if not torch.cuda.is_available():
        environment.setenv("TRITON_INTERPRET", "1")  # read while Triton and its kernels are imported
    importlib.import_module("rcnn.ops.kernels.on_triton")  # before the checker of shapes, which cannot wrap kernels

hypothesis.settings.register_profile("rcnn", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("rcnn")
jaxtyping.install_import_hook("rcnn", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests/parity, skips gpu tests where there is none, and starts the slow tests first."""
    for item in items:
        if item.path.is_relative_to(CHECKOUT / "tests" / "parity"):
            item.add_marker("parity")
    needs_gpu = [item for item in items if "gpu" in item.keywords]
    if needs_gpu and not torch.cuda.is_available():
        for item in needs_gpu:
            item.add_marker(pytest.mark.skip(reason="needs CUDA, and torch sees no GPU"))
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden values and real data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data: {SHARED} is not a folder; set RCNN_SHARED to where it is")
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Random numbers that a test draws without a generator of its own are the same each time."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def checked_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes and dtypes in signatures are checked, except under torch.compile, which cannot trace the checker."""
    jaxtyping.config.update("jaxtyping_disable", "compile" in request.keywords)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
