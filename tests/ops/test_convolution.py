"""A convolution of 3 x 3 cells and its gradient: by hand, against float64, and no further from it than oneDNN's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import kernels as loader
from rcnn.ops.convolution import (
    convolution,
    convolution_and_pool,
    convolution_and_pool_reference,
    convolution_reference,
    gradient,
    gradient_of_pooled,
    gradient_of_pooled_reference,
    gradient_reference,
    pack,
    pays,
)
from tests.ops.conftest import implementations

ON_A_CPU = [name for name in implementations() if name != "triton"]
every_kernel = pytest.mark.parametrize("kernels", ON_A_CPU, indirect=True)
NATIVE = loader.module_for(torch.device("cpu"))
with_amx = pytest.mark.skipif(
    not (NATIVE and hasattr(NATIVE, "convolution") and NATIVE.has_amx()),
    reason="the compiled kernel needs a processor with AMX",
)

# images, channels, outputs, height, width
SIZES = [
    (1, 32, 32, 1, 1), (1, 32, 64, 1, 9), (2, 64, 32, 5, 1), (1, 96, 32, 7, 8), (3, 32, 96, 5, 7), (2, 160, 288, 6, 11),
    (1, 128, 256, 13, 20), (1, 32, 32, 3, 300), (4, 64, 64, 16, 15), (1, 320, 64, 37, 50), (1, 32, 32, 200, 31),
]  # fmt: skip


def layer(images: int, channels: int, outputs: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weight and bias."""
    x = torch.randn(images, channels, height, width).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)).bfloat16()
    return x, weight.contiguous(memory_format=torch.channels_last), torch.randn(outputs).bfloat16().float()


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias.bfloat16(), padding=1)


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1)


def error(found: Tensor, right: Tensor) -> Tensor:
    return (found.double() - right).square().mean().sqrt()


@every_kernel
def test_of_one_place_it_is_the_weight_turned_round(kernels: str) -> None:
    weight = torch.arange(64 * 32 * 9.0).remainder(251).view(64, 32, 3, 3).bfloat16()
    x = torch.zeros(1, 32, 5, 7).bfloat16()
    x[0, 3, 2, 4] = 1
    y = convolution(x, pack(weight))
    assert torch.equal(y[0, :, 1:4, 3:6], weight[:, 3].flip(1, 2))
    assert y.count_nonzero() == weight[:, 3].count_nonzero()
    corner = convolution(x.roll((-2, 2), (2, 3)), pack(weight))[0]
    assert torch.equal(corner[:, :2, 5:], weight[:, 3].flip(1, 2)[:, 1:, :2])


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_it_is_no_further_from_float64_than_onednn(kernels: str, size: tuple[int, ...]) -> None:
    x, weight, bias = layer(*size)
    found, right = convolution(x, pack(weight), bias), exact(x, weight, bias)
    assert found.dtype == torch.bfloat16 and found.shape == right.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, right) <= 1.01 * error(by_onednn(x, weight, bias), right)
    assert torch.allclose(found.double(), right, rtol=2**-8, atol=1e-4)  # half of a bfloat16's last digit


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_float64_rounded(kernels: str, size: tuple[int, ...]) -> None:
    x, weight, bias = layer(*size)
    wide = x.double().requires_grad_()
    y = exact(wide, weight, bias)
    grad = torch.randn_like(y).bfloat16()
    (right,) = torch.autograd.grad(y, wide, grad.double())
    found, own = gradient(grad, weight)
    assert found.is_contiguous(memory_format=torch.channels_last) and own is grad
    assert torch.allclose(found.double(), right, rtol=2**-8, atol=1e-4)


@every_kernel
def test_what_comes_after_it(kernels: str) -> None:
    x, weight, bias = layer(3, 64, 96, 11, 14)
    packed, y, add = pack(weight), exact(x, weight, bias), torch.randn(3, 96, 11, 14).bfloat16()
    for found, right in (
        (convolution(x, packed, bias, relu=True), y.relu()),
        (convolution(x, packed, bias, add=add), y + add.double()),
        (convolution(x, packed, bias, add=add, relu=True), (y + add.double()).relu()),
        (convolution(x, packed, bias, pool=True), F.max_pool2d(y, 2, 2)),
        (convolution(x, packed, bias, pool=True, relu=True), F.max_pool2d(y, 2, 2).relu()),
    ):
        assert found.shape == right.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(found.double(), right, rtol=2**-8, atol=1e-4)


@every_kernel
@pytest.mark.parametrize("sides", [(2, 2), (2, 3), (3, 2), (7, 40), (64, 33)])
def test_pooled_it_is_what_pooling_makes_of_it(kernels: str, sides: tuple[int, int]) -> None:
    x, weight, bias = layer(3, 32, 64, *sides)
    y, found = convolution(x, pack(weight), bias, relu=True), convolution(x, pack(weight), bias, relu=True, pool=True)
    assert torch.equal(found, F.max_pool2d(y, 2, 2))


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_through_a_relu_the_gradient_is_that_of_what_passed(kernels: str, size: tuple[int, ...]) -> None:
    weight, (images, _, outputs, *sides) = layer(*size)[1], size
    grad, y = (torch.randn(images, outputs, *sides).bfloat16() for _ in range(2))
    y[:, :, sides[0] // 2] = 0
    of_x, masked = gradient(grad, weight, y)
    assert torch.equal(masked, torch.where(y > 0, grad, 0))
    assert torch.equal(of_x, gradient(masked, weight)[0])
    assert masked.is_contiguous(memory_format=torch.channels_last)


@every_kernel
@pytest.mark.parametrize("sides", [(2, 2), (2, 3), (3, 2), (7, 40), (64, 33)])
def test_pooled_its_gradient_goes_to_the_first_of_the_largest(kernels: str, sides: tuple[int, int]) -> None:
    x, weight, bias = layer(3, 32, 64, *sides)
    y, chosen = convolution_and_pool(x, pack(weight), bias)
    assert torch.equal(y, convolution(x, pack(weight), bias, relu=True, pool=True))
    whole = convolution(x, pack(weight), bias, relu=True).double().requires_grad_()
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(F.max_pool2d(whole, 2, 2), whole, grad.double())
    expected = torch.where(whole > 0, expected, 0).bfloat16()
    of_x, spread = gradient_of_pooled(grad, weight, y, chosen, sides)
    assert torch.equal(spread, expected) and spread.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(of_x, gradient(expected, weight)[0])


@every_kernel
def test_any_layout_will_do(kernels: str) -> None:
    x, weight, bias = layer(2, 64, 32, 9, 14)
    expected = convolution(x, pack(weight), bias)
    wide = torch.randn(2, 80, 12, 14).bfloat16()
    wide[:, 8:72, 1:10] = x
    for other in (x.contiguous(), wide[:, 8:72, 1:10], x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(convolution(other, pack(weight.contiguous()), bias), expected)


@every_kernel
def test_kernels_agree_with_the_reference(kernels: str) -> None:
    x, weight, bias = layer(2, 96, 64, 17, 23)
    add = torch.randn(2, 64, 17, 23).bfloat16()
    y = convolution(x, pack(weight), bias, add=add, relu=True)
    expected = convolution_reference(x, pack(weight), bias, add, True, False)
    assert torch.allclose(y.float(), expected.float(), rtol=2**-7, atol=1e-4)
    whole, pooled = convolution_and_pool(x, pack(weight), bias), convolution_and_pool_reference(x, pack(weight), bias)
    assert torch.allclose(whole[0].float(), pooled[0].float(), rtol=2**-7, atol=1e-4)
    assert (whole[1] == pooled[1])[pooled[0] > 0].float().mean() > 0.99  # two may be equal when rounded
    back = (whole[0], *pooled, (17, 23))
    found, right = (
        gradient_of_pooled(back[0], weight, *back[1:]),
        gradient_of_pooled_reference(back[0], pack(weight, transposed=True), *back[1:]),
    )
    assert torch.allclose(found[0].float(), right[0].float(), rtol=2**-7, atol=1e-4)
    assert torch.equal(found[1], right[1])
    found, right = gradient(add, weight, y), gradient_reference(add, pack(weight, transposed=True), y)
    assert torch.allclose(found[0].float(), right[0].float(), rtol=2**-7, atol=1e-4)
    assert torch.equal(found[1], right[1])


@with_amx
def test_bits_depend_on_neither_threads_nor_the_rest_of_the_batch_and_onednn_is_not_disturbed() -> None:
    x, weight, bias = layer(3, 192, 288, 21, 34)
    packed, before = pack(weight), torch.get_num_threads()
    expected, pooled = convolution(x, packed, bias), convolution(x, packed, bias, pool=True)
    chosen = convolution_and_pool(x, packed, bias)
    of_pooled = gradient_of_pooled(pooled, weight, *chosen, (21, 34))
    of_x, theirs = gradient(expected, weight, expected), by_onednn(x, weight, bias)
    try:
        for threads in (1, 2, 3, 7, 64) * 3:
            torch.set_num_threads(threads)
            assert torch.equal(pack(weight), packed)
            assert torch.equal(convolution(x, packed, bias), expected)
            assert torch.equal(convolution(x, packed, bias, pool=True), pooled)
            for a, b in zip(convolution_and_pool(x, packed, bias), chosen, strict=True):
                assert torch.equal(a, b)
            for a, b in zip(gradient_of_pooled(pooled, weight, *chosen, (21, 34)), of_pooled, strict=True):
                assert torch.equal(a, b)
            for a, b in zip(gradient(expected, weight, expected), of_x, strict=True):
                assert torch.equal(a, b)
        for i in range(3):
            assert torch.equal(convolution(x[i : i + 1], packed, bias), expected[i : i + 1])
        torch.set_num_threads(before)
        assert torch.equal(by_onednn(x, weight, bias), theirs)
    finally:
        torch.set_num_threads(before)


@every_kernel
def test_what_is_no_number_is_not_hidden_and_stays_near_its_place(kernels: str) -> None:
    x, weight, bias = layer(1, 64, 64, 8, 9)
    x[0, 40, 3, 3] = torch.nan
    near = torch.zeros(8, 9, dtype=torch.bool)
    near[2:5, 2:5] = True
    y = convolution(x, pack(weight), bias, relu=True)
    assert torch.equal(y.isnan(), near.expand_as(y))
    pooled = convolution(x, pack(weight), bias, relu=True, pool=True)
    assert torch.equal(pooled.isnan(), F.max_pool2d(near[None].float(), 2, 2).bool().expand_as(pooled))


@every_kernel
def test_nothing_of_nothing(kernels: str) -> None:
    x, weight, bias = layer(1, 32, 32, 4, 4)
    assert convolution(x[:0], pack(weight), bias).shape == (0, 32, 4, 4)


@with_amx
def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = layer(1, 32, 64, 5, 5)
    assert NATIVE is not None
    none, out = x.new_empty(0, 1, 1, 1), x.new_empty(1, 5, 5, 64)
    bytes_ = x.new_empty(0, 1, 1, 1, dtype=torch.uint8)
    right = [x.permute(0, 2, 3, 1), none, none, pack(weight), bias, none, out, bytes_]
    wrongs = [(0, right[0][:, :4].contiguous()), (0, right[0].float()), (1, out), (1, right[0]), (2, right[0])]
    wrongs += [(3, right[3][:1]), (4, bias[:32]), (5, right[0]), (6, out[:, :4].contiguous()), (6, out.float())]
    wrongs += [(7, out.byte()), (7, right[0].byte().contiguous())]
    for at, wrong in wrongs:
        with pytest.raises(ValueError, match="convolution: shapes, types or the processor do not fit"):
            NATIVE.convolution(*(wrong if i == at else y for i, y in enumerate(right)), False, False, 1)
    with pytest.raises(ValueError, match="pack_convolution: shapes, types or the processor do not fit"):
        NATIVE.pack_convolution(weight.permute(0, 2, 3, 1)[:33].contiguous(), pack(weight), False, 1)


FORM: Any = ((1, 1), (1, 1), (1, 1), 1)
OTHERS: Any = [((2, 2), *FORM[1:]), ((1, 1), (0, 0), *FORM[2:]), (*FORM[:2], (2, 2), 1), (*FORM[:3], 2)]


@with_amx
def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    weight, x = torch.zeros(256, 256, 3, 3).bfloat16(), torch.zeros(1, 256, 37, 50).bfloat16()  # 2.2 GFLOP
    assert pays(weight, x, FORM) and pays(weight, x, ([1, 1], [1, 1], [1, 1], 1)) and pays(weight.float(), x, FORM)
    assert not any(pays(weight, x, other) for other in OTHERS)
    assert not pays(weight, x[..., :10], FORM) and not pays(weight[..., :1, :1], x, FORM)
    assert not pays(weight[:128], x, FORM) and pays(weight[:128], x, FORM, more=True)
    assert not pays(weight[:32], x, FORM, more=True) and pays(weight[:32], x.expand(40, -1, -1, -1), FORM)
    assert not pays(torch.zeros(260, 256, 3, 3), x, FORM) and not pays(weight, x.float(), FORM)
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    assert not pays(weight, x, FORM)
