"""The products of a large linear layer in training: by hand, against float64, and compiled as the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import kernels as loader
from rcnn.ops import large_linear as module
from rcnn.ops.large_linear import (
    large_linear,
    large_linear_reference,
    large_linear_update_,
    large_linear_update_reference_,
    large_linear_weight,
    large_linear_weight_reference,
    pays,
)
from rcnn.ops.update import Rule

NATIVE = loader.module_for(torch.device("cpu"))
HAS_TILES = NATIVE is not None and hasattr(NATIVE, "large_linear") and NATIVE.has_amx()
with_tiles = pytest.mark.skipif(not HAS_TILES, reason="needs a processor with AMX, on Linux, and the C++ kernels")
each = pytest.mark.parametrize(
    ("forward", "of_weight"),
    [
        pytest.param(large_linear_reference, large_linear_weight_reference, id="reference"),
        pytest.param(large_linear, large_linear_weight, id="tiles", marks=with_tiles),
    ],
)
Run = Callable[..., Tensor]

# rows, inputs, outputs; of the last three the results need inputs in other steps, so the reference computes them
SIZES = [
    (1, 256, 32), (15, 256, 64), (16, 512, 96), (17, 768, 128), (31, 256, 160), (64, 1024, 128), (65, 512, 288),
    (100, 256, 1056), (128, 2304, 256), (129, 256, 32), (191, 512, 64), (200, 768, 96), (256, 512, 416),
    (300, 256, 64), (513, 256, 192), (40, 96, 64), (128, 288, 32), (7, 100, 21),
]  # fmt: skip


def case(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of the results."""
    torch.manual_seed(rows + inputs + outputs)
    x, weight = torch.randn(rows, inputs).bfloat16(), (torch.randn(outputs, inputs) / inputs**0.5).bfloat16()
    return x, weight, torch.randn(outputs).bfloat16(), torch.randn(rows, outputs).bfloat16()


def updated(grad: Tensor, x: Tensor, apart: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, momentum and copy after an update; they begin so many values after their memory."""
    shape = (grad.shape[1], x.shape[1])
    weight, buffer = (torch.full((shape[0] * shape[1] + apart,), v)[apart:].view(shape) for v in (0.5, -2.0))
    low = torch.empty(shape[0] * shape[1] + apart, dtype=torch.bfloat16)[apart:].view(shape)
    large_linear_update_(weight, grad, x, buffer, low, Rule(lr=0.1, momentum=0.9, decay=0.01, clip=5.0))
    return weight, buffer, low


def is_rounded_once(found: Tensor, exact: Tensor) -> bool:
    """Within half a unit of bfloat16, and of a sum in float32."""
    within = (found.double() - exact).abs() <= exact.abs() * 2**-8 + 2e-5
    return found.dtype == torch.bfloat16 and found.shape == exact.shape and bool(within.all())


@each
@pytest.mark.parametrize("size", SIZES)
def test_sums_are_exact_and_rounded_once(forward: Run, of_weight: Run, size: tuple[int, int, int]) -> None:
    x, weight, bias, grad = case(*size)
    assert is_rounded_once(forward(x, weight, bias), F.linear(x.double(), weight.double(), bias.double()))
    assert is_rounded_once(of_weight(grad, x), grad.double().t() @ x.double())


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(large_linear_update_reference_, id="reference"),
        pytest.param(large_linear_update_, id="tiles", marks=with_tiles),
    ],
)
@pytest.mark.parametrize("size", [*SIZES, (60, 6400, 320)])
@pytest.mark.parametrize("clip", [0.0, 4.0])
def test_an_update_is_that_by_the_exact_gradient(
    update: Callable[..., None], clip: float, size: tuple[int, int, int]
) -> None:
    x, _, _, grad = case(*size)
    weight, buffer = torch.randn(2, size[2], size[1]).unbind(0)
    gradient = grad.double().t() @ x.double()
    gradient = gradient.clamp(-clip, clip) if clip else gradient
    expected = 0.75 * buffer.double() + gradient + 0.5 * weight.double()
    new = weight.double() - 0.25 * expected
    low = torch.empty_like(weight, dtype=torch.bfloat16)
    update(weight, grad, x, buffer, low, Rule(lr=0.25, momentum=0.75, decay=0.5, clip=clip))
    assert torch.allclose(buffer.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.allclose(weight.double(), new, rtol=1e-5, atol=1e-4)
    assert torch.equal(low, weight.bfloat16())


@each
def test_one_row_and_one_weight_by_hand(forward: Run, of_weight: Run) -> None:
    x, weight = torch.zeros(70, 512).bfloat16(), torch.zeros(64, 512).bfloat16()
    bias, grad = torch.zeros(64).bfloat16(), torch.zeros(70, 64).bfloat16()
    x[66, 291], weight[49, 291], bias[2], grad[66, 37] = 3, -2, 1.5, 5
    expected = torch.zeros(70, 64)
    expected[:, 2], expected[66, 49] = 1.5, -6
    assert torch.equal(forward(x, weight, bias).float(), expected)
    expected = torch.zeros(64, 512)
    expected[37, 291] = 15
    assert torch.equal(of_weight(grad, x).float(), expected)


@each
def test_what_is_no_number_stays_in_its_row(forward: Run, of_weight: Run) -> None:
    x, weight, bias, grad = case(40, 256, 64)
    rows, columns = forward(x, weight, bias), of_weight(grad, x)
    x[35, 7] = torch.nan
    found = forward(x, weight, bias)
    assert found[35].isnan().all() and torch.equal(found[:35], rows[:35]) and torch.equal(found[36:], rows[36:])
    found = of_weight(grad, x)
    assert found[:, 7].isnan().all() and torch.equal(found[:, :7], columns[:, :7])
    assert torch.equal(found[:, 8:], columns[:, 8:])


@with_tiles
@pytest.mark.parametrize("size", [(128, 1280, 1312), (77, 512, 2080)])
def test_bits_do_not_depend_on_threads_nor_on_the_place_in_memory(size: tuple[int, int, int]) -> None:
    x, weight, bias, grad = case(*size)
    expected, of_weight, threads = large_linear(x, weight, bias), large_linear_weight(grad, x), torch.get_num_threads()
    theirs, first = F.linear(x, weight, bias), updated(grad, x)
    shifted = torch.empty(x.numel() + 1, dtype=torch.bfloat16)[1:].view_as(x).copy_(x)
    try:
        for count in (1, 2, 3, 5) * 3:
            torch.set_num_threads(count)
            assert torch.equal(large_linear(shifted, weight, bias), expected)
            assert torch.equal(large_linear_weight(grad, shifted), of_weight)
            assert all(torch.equal(a, b) for a, b in zip(updated(grad, shifted, apart=1), first, strict=True))
            assert torch.equal(large_linear(x.t().contiguous().t(), weight, bias), expected)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(F.linear(x, weight, bias), theirs)  # oneDNN, which has tiles of its own, is not disturbed


@with_tiles
def test_a_result_that_does_not_begin_with_a_line_of_the_cache() -> None:
    assert NATIVE is not None
    x, _, _, grad = case(60, 256, 64)
    out = torch.full((64 * 256 + 2,), 7.0).bfloat16()
    NATIVE.large_gradient(grad, x, out[1:-1].view(64, 256), 2)
    assert torch.equal(out[1:-1].view(64, 256), large_linear_weight(grad, x)) and out[0] == out[-1] == 7


def test_no_rows() -> None:
    x, weight, bias, grad = case(4, 256, 64)
    assert large_linear(x[:0], weight, bias).shape == (0, 64)
    found = large_linear_weight(grad[:0], x[:0])
    assert found.shape == (64, 256) and not found.any()
    weight = updated(grad[:0], x[:0])[0]
    assert torch.allclose(weight, torch.tensor(0.5 - 0.1 * (-1.8 + 0.005)))


@with_tiles
def test_what_does_not_fit_is_refused() -> None:
    assert NATIVE is not None
    x, weight, bias, grad = case(4, 512, 64)
    right = [x, weight, bias[None], x.new_empty(4, 64)]
    for at, wrong in ((0, x[:, :256]), (0, x.float()), (1, weight[:32]), (2, bias[None, :9]), (3, x.new_empty(3, 64))):
        with pytest.raises(ValueError, match="large_linear: shapes, types or the processor do not fit"):
            NATIVE.large_linear(*(wrong.contiguous() if i == at else y for i, y in enumerate(right)), 1)
    right = [grad, x, torch.empty_like(weight)]
    for at, wrong in ((0, grad[:3]), (0, grad.float()), (1, x[:, :256]), (2, weight[:32])):
        with pytest.raises(ValueError, match="large_gradient: shapes, types or the processor do not fit"):
            NATIVE.large_gradient(*(wrong.contiguous() if i == at else y for i, y in enumerate(right)), 1)
    right = [grad, x, weight.float(), weight.float(), weight]
    wrongs = [(0, grad[:3]), (0, grad.float()), (0, grad[:, :40]), (1, x[:, :256]), (1, x.float()), (2, weight)]
    for at, wrong in [*wrongs, (2, right[2][:32]), (3, weight), (3, right[2][0]), (4, right[2]), (4, weight[:, :256])]:
        with pytest.raises(ValueError, match="large_update: shapes, types or the processor do not fit"):
            NATIVE.large_update(*(wrong.contiguous() if i == at else y for i, y in enumerate(right)), 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "expected"),
    [
        (128, 25088, 4096, torch.bfloat16, HAS_TILES),
        (128, 4096, 4096, torch.bfloat16, HAS_TILES),
        (128, 25088, 4096, torch.float32, False),
        (8, 25088, 4096, torch.bfloat16, False),
        (512, 25088, 4096, torch.bfloat16, False),
        (128, 25056, 4096, torch.bfloat16, False),
        (128, 25088, 4097, torch.bfloat16, False),
        (128, 1024, 512, torch.bfloat16, False),
    ],
)
def test_which_layers_it_is_for(rows: int, inputs: int, outputs: int, dtype: torch.dtype, expected: bool) -> None:
    x, weight = torch.empty(rows, inputs, dtype=dtype), torch.empty(outputs, inputs, dtype=dtype, device="meta")
    assert pays(x, weight) == expected


def test_without_the_kernels_the_reference_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    x, weight, bias, grad = case(20, module.CHUNK, module.WIDTH)
    assert not pays(x.expand(-1, -1), torch.empty(4096, module.CHUNK, dtype=torch.bfloat16, device="meta"))
    assert torch.equal(large_linear(x, weight, bias), large_linear_reference(x, weight, bias))
    assert torch.equal(large_linear_weight(grad, x), large_linear_weight_reference(grad, x))
