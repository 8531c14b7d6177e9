"""The gradients of a weight of 3 x 3 cells: by hand, against float64, and no further from it than oneDNN's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import kernels as loader
from rcnn.ops.weight_gradient import pays, weight_gradient, weight_gradient_reference
from tests.ops.conftest import implementations

ON_A_CPU = [name for name in implementations() if name != "triton"]
every_kernel = pytest.mark.parametrize("kernels", ON_A_CPU, indirect=True)
NATIVE = loader.module_for(torch.device("cpu"))
with_amx = pytest.mark.skipif(
    not (NATIVE and hasattr(NATIVE, "weight_gradient") and NATIVE.has_amx()),
    reason="the compiled kernel needs a processor with AMX",
)

# images, channels, outputs, height, width
SIZES = [
    (1, 32, 32, 1, 1), (1, 32, 64, 1, 9), (2, 64, 32, 5, 1), (1, 96, 32, 7, 8), (3, 32, 96, 5, 7), (2, 160, 288, 6, 11),
    (1, 128, 256, 13, 20), (1, 32, 32, 3, 300), (4, 64, 64, 16, 15), (1, 320, 64, 37, 50),
    (2, 31, 33, 4, 5), (1, 3, 64, 9, 9), (1, 32, 40, 6, 6),
]  # fmt: skip


def maps(images: int, channels: int, outputs: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The gradient of a convolution's maps, and its inputs."""
    both = torch.randn(images, outputs + channels, height, width).bfloat16()
    grad, x = both[:, :outputs], both[:, outputs:]
    return grad.contiguous(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def by_onednn(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = x.new_zeros(grad.shape[1], x.shape[1], 3, 3)
    sizes = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found = torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], *sizes, [False, True, True])
    return found[1], found[2]


def exact(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(grad.shape[1], x.shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(grad.shape[1], dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x.double(), weight, bias, padding=1)
    of_weight, of_bias = torch.autograd.grad(y, (weight, bias), grad.double())
    return of_weight, of_bias


def error(found: Tensor, right: Tensor) -> Tensor:
    return (found.double() - right).square().mean().sqrt()


@every_kernel
def test_of_one_place_it_is_what_lies_around_it(kernels: str) -> None:
    x = torch.arange(32 * 35.0).remainder(251).view(1, 32, 5, 7).bfloat16()
    grad = torch.zeros(1, 32, 5, 7).bfloat16()
    grad[0, 3, 2, 4], grad[0, 5, 0, 6] = 1, 2
    of_weight, of_bias = weight_gradient(grad, x)
    assert torch.equal(of_weight[3], x[0, :, 1:4, 3:6])
    corner = torch.zeros(32, 3, 3).bfloat16()
    corner[:, 1:, :2] = 2 * x[0, :, :2, 5:]
    assert torch.equal(of_weight[5], corner)
    assert of_bias.nonzero().flatten().tolist() == [3, 5] and of_bias[5] == 2
    assert of_weight.count_nonzero() == of_weight[[3, 5]].count_nonzero()


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_it_is_no_further_from_float64_than_onednn(kernels: str, size: tuple[int, ...]) -> None:
    grad, x = maps(*size)
    found = weight_gradient(grad, x)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for ours, theirs, right in zip(found, by_onednn(grad, x), exact(grad, x), strict=True):
        assert ours.dtype == torch.bfloat16 and ours.shape == right.shape
        assert error(ours, right) <= 1.01 * error(theirs, right)
        assert torch.allclose(ours.double(), right, rtol=2**-8, atol=1e-4)  # half of a bfloat16's last digit


@every_kernel
def test_any_layout_will_do(kernels: str) -> None:
    grad, x = maps(2, 64, 32, 9, 14)
    expected = weight_gradient(grad, x)
    wide = torch.randn(2, 80, 12, 14).bfloat16()
    wide[:, 8:72, 1:10] = x
    for other in (x.contiguous(), wide[:, 8:72, 1:10], x.transpose(2, 3).contiguous().transpose(2, 3)):
        for a, b in zip(weight_gradient(grad.contiguous(), other), expected, strict=True):
            assert torch.equal(a, b)


@every_kernel
def test_kernels_agree_with_the_reference(kernels: str) -> None:
    grad, x = maps(2, 96, 64, 17, 23)
    for a, b in zip(weight_gradient(grad, x), weight_gradient_reference(grad, x), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=2**-7, atol=1e-4)


@with_amx
def test_bits_do_not_depend_on_threads_and_onednn_is_not_disturbed() -> None:
    grad, x = maps(2, 192, 288, 21, 34)
    expected, theirs, before = weight_gradient(grad, x), by_onednn(grad, x), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7) * 5:
            torch.set_num_threads(threads)
            for a, b in zip(weight_gradient(grad, x), expected, strict=True):
                assert torch.equal(a, b)
        torch.set_num_threads(before)
        for a, b in zip(by_onednn(grad, x), theirs, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


@every_kernel
def test_what_is_no_number_is_not_hidden_and_stays_in_its_channel(kernels: str) -> None:
    grad, x = maps(1, 64, 64, 8, 9)
    grad[0, 40, 3, 3] = torch.nan
    of_weight, of_bias = weight_gradient(grad, x)
    others = [f for f in range(64) if f != 40]
    assert of_weight[40].isnan().all() and of_bias[40].isnan()
    assert of_weight[others].isfinite().all() and of_bias[others].isfinite().all()


@every_kernel
def test_nothing_of_nothing(kernels: str) -> None:
    of_weight, of_bias = weight_gradient(*(y[:0] for y in maps(1, 32, 32, 4, 4)))
    assert of_weight.shape == (32, 32, 3, 3) and not of_weight.any() and not of_bias.any()


@with_amx
def test_what_does_not_fit_is_refused() -> None:
    grad, x = maps(1, 32, 64, 5, 5)
    assert NATIVE is not None
    weight, bias = x.new_empty(64, 3, 3, 32), x.new_empty(64, 1, 1, 1)
    right = [grad.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1), weight, bias]
    for at, wrong in ((0, right[0][:, :4].contiguous()), (1, right[1].float()), (2, weight[:32]), (3, bias[:32])):
        with pytest.raises(ValueError, match="weight_gradient: shapes, types or the processor do not fit"):
            NATIVE.weight_gradient(*(wrong if i == at else y for i, y in enumerate(right)), 1)


FORM: Any = ((1, 1), (1, 1), (1, 1), 1)
OTHERS: Any = [((2, 2), *FORM[1:]), ((1, 1), (0, 0), *FORM[2:]), (*FORM[:2], (2, 2), 1), (*FORM[:3], 2)]


@with_amx
def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    weight, x = torch.zeros(128, 128, 3, 3).bfloat16(), torch.zeros(1, 128, 75, 100).bfloat16()  # 2.2 GFLOP
    assert pays(weight, x, FORM) and pays(weight, x, ([1, 1], [1, 1], [1, 1], 1))
    assert not any(pays(weight, x, other) for other in OTHERS)
    assert not pays(weight, x[..., :20], FORM)
    assert not pays(weight[:96], x, FORM) and not pays(weight[..., :1, :1], x, FORM)
    assert not pays(torch.zeros(140, 128, 3, 3).bfloat16(), x, FORM)
    assert not pays(weight.float(), x, FORM) and not pays(weight.float(), x.float(), FORM)
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    assert not pays(weight, x, FORM)
