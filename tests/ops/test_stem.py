"""A network's first two convolutions as one: the kernel against the two, by themselves and in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import convolution
from rcnn.ops import kernels as loader
from rcnn.ops.stem import pack_first, pays, stem, stem_reference
from tests.ops.conftest import implementations

ON_A_CPU = [name for name in implementations() if name != "triton"]
every_kernel = pytest.mark.parametrize("kernels", ON_A_CPU, indirect=True)
NATIVE = loader.module_for(torch.device("cpu"))
with_amx = pytest.mark.skipif(
    not (NATIVE and hasattr(NATIVE, "stem") and NATIVE.has_amx()),
    reason="the compiled kernel needs a processor with AMX",
)
SIZES = [(1, 2, 2, 32, 32), (2, 5, 7, 64, 96), (1, 9, 40, 32, 64), (3, 16, 33, 64, 64), (1, 41, 300, 64, 64)]


def layers(images: int, height: int, width: int, between: int, outputs: int) -> tuple[Tensor, ...]:
    """Pictures, and weight and bias of both convolutions."""
    x = torch.randn(images, 3, height, width).bfloat16().contiguous(memory_format=torch.channels_last)
    first = (torch.randn(between, 3, 3, 3) / 5).bfloat16()
    second = (torch.randn(outputs, between, 3, 3) / (3 * between**0.5)).bfloat16()
    return x, first, torch.randn(between), second, torch.randn(outputs)


def packed(first: Tensor, first_bias: Tensor, second: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return pack_first(first), first_bias, convolution.pack(second), bias


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_it_is_two_convolutions_and_pooling(kernels: str, size: tuple[int, ...]) -> None:
    x, first, first_bias, second, bias = layers(*size)
    found = stem(x, *packed(first, first_bias, second, bias))
    between = F.conv2d(x.double(), first.double(), first_bias.double(), padding=1).relu().bfloat16()
    right = F.max_pool2d(F.conv2d(between.double(), second.double(), bias.double(), padding=1).relu(), 2, 2)
    assert found.dtype == torch.bfloat16 and found.shape == right.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    # what lies between may be rounded the other way where float32 and float64 fall on two sides of a half
    assert torch.allclose(found.double(), right, rtol=2**-8, atol=0.01)
    assert (found.double() - right).square().mean().sqrt() < 0.005 * right.square().mean().sqrt()


@every_kernel
def test_kernels_agree_with_the_reference_at_any_layout(kernels: str) -> None:
    x, *weights = layers(2, 17, 35, 64, 64)
    y, expected = stem(x, *packed(*weights)), stem_reference(x, *packed(*weights))
    assert torch.allclose(y.float(), expected.float(), rtol=2**-7, atol=0.01)
    assert torch.allclose(stem(x.contiguous(), *packed(*weights)).float(), y.float(), rtol=2**-7, atol=1e-2)


@with_amx
def test_bits_depend_on_neither_threads_nor_the_rest_of_the_batch() -> None:
    x, *weights = layers(3, 21, 34, 64, 96)
    expected, before = stem(x, *packed(*weights)), torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7, 64) * 2:
            torch.set_num_threads(threads)
            assert torch.equal(stem(x, *packed(*weights)), expected)
        for i in range(3):
            assert torch.equal(stem(x[i : i + 1], *packed(*weights)), expected[i : i + 1])
    finally:
        torch.set_num_threads(before)


@every_kernel
def test_what_is_no_number_stays_near_its_place(kernels: str) -> None:
    x, *weights = layers(1, 12, 12, 32, 32)
    x[0, 1, 5, 5] = torch.nan
    near = torch.zeros(12, 12)
    near[3:8, 3:8] = 1
    expected = F.max_pool2d(near[None], 2, 2).bool()
    assert torch.equal(stem(x, *packed(*weights)).isnan().any(1), expected)


@with_amx
def test_what_does_not_fit_is_refused() -> None:
    x, *weights = layers(1, 6, 6, 32, 64)
    assert NATIVE is not None
    right = [x.permute(0, 2, 3, 1).contiguous(), *packed(*weights), x.new_empty(1, 3, 3, 64)]
    wrongs = [(0, right[0].float()), (0, right[0][..., :2].contiguous()), (1, right[1][:, :, :, :512].contiguous())]
    for at, wrong in [*wrongs, (2, torch.zeros(64)), (3, right[3][:1]), (4, torch.zeros(32)), (5, right[5][:, :2])]:
        with pytest.raises(ValueError, match="stem: shapes, types or the processor do not fit"):
            NATIVE.stem(*(wrong if i == at else y for i, y in enumerate(right)), 1)


FORM: Any = ((1, 1), (1, 1), (1, 1), 1)


@with_amx
def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    x, first, second = torch.zeros(1, 3, 300, 400).bfloat16(), torch.zeros(64, 3, 3, 3), torch.zeros(64, 64, 3, 3)
    assert pays(x, first, second, FORM, FORM)
    wide: Any = ((1, 1), (0, 0), (1, 1), 1)
    assert not pays(x, first, second, FORM, wide) and not pays(x, first, second, wide, wide)
    assert not pays(x.float(), first, second, FORM, FORM) and not pays(x[..., :20], first, second, FORM, FORM)
    assert not pays(x[:, :1], first[:, :1], second, FORM, FORM) and not pays(x, first[..., :1], second, FORM, FORM)
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    assert not pays(x, first, second, FORM, FORM)
