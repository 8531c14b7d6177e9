"""Winograd's convolution: by hand, against the convolution in float64, and every implementation with the reference."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.ops import winograd as module
from rcnn.ops.winograd import pays, transform_weight, winograd, winograd_reference
from tests.ops.conftest import implementations

ON_A_CPU = [name for name in implementations() if name != "triton"]
every_kernel = pytest.mark.parametrize("kernels", ON_A_CPU, indirect=True)
compiled = pytest.mark.parametrize("kernels", ON_A_CPU[1:], indirect=True)

# images, channels, outputs, height, width
SIZES = [
    (1, 1, 1, 1, 1), (1, 3, 5, 1, 9), (2, 4, 6, 2, 3), (1, 16, 32, 4, 4), (3, 17, 33, 5, 7), (2, 15, 31, 6, 6),
    (1, 64, 64, 8, 12), (1, 31, 70, 13, 9), (2, 48, 96, 25, 38), (5, 40, 8, 3, 1), (1, 70, 65, 37, 50),
]  # fmt: skip


def layer(images: int, channels: int, outputs: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(images, channels, height, width).to(memory_format=torch.channels_last)
    add = torch.randn(images, outputs, height, width).to(memory_format=torch.channels_last)
    return x, torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5), torch.randn(outputs), add


def exact(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    y = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    y = y if add is None else y + add.double()
    return F.relu(y) if relu else y


def test_four_results_of_six_inputs_and_three_weights() -> None:
    of_weights, of_inputs, of_results = module._matrices()
    weights, inputs = torch.tensor([2.0, -1.0, 3.0]).double(), torch.tensor([1.0, 2.0, 0.0, -1.0, 4.0, 5.0]).double()
    found = of_results @ ((of_weights @ weights) * (of_inputs @ inputs))
    assert torch.allclose(found, torch.tensor([0.0, 1.0, 13.0, 9.0]).double(), atol=1e-12)


@every_kernel
def test_a_weight_in_the_centre_copies_and_one_beside_it_shifts(kernels: str) -> None:
    x = torch.arange(35.0).view(1, 1, 5, 7)
    centre, left = torch.zeros(2, 1, 1, 3, 3).unbind(0)
    centre[..., 1, 1], left[..., 1, 0] = 1, 1
    assert torch.allclose(winograd(x, transform_weight(centre), torch.zeros(1)), x, atol=1e-4)
    shifted = winograd(x, transform_weight(left), torch.ones(1))
    assert torch.allclose(shifted, F.pad(x, (1, 0))[..., :-1] + 1, atol=1e-4)


@every_kernel
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("relu", "with_add"), [(False, False), (True, False), (True, True), (False, True)])
def test_it_is_the_convolution(kernels: str, size: tuple[int, ...], relu: bool, with_add: bool) -> None:
    x, weight, bias, add = layer(*size)
    given = add if with_add else None
    found = winograd(x, transform_weight(weight), bias, given, relu=relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.double(), exact(x, weight, bias, given, relu), atol=2e-5)


@every_kernel
@pytest.mark.parametrize("size", SIZES)
def test_kernels_agree_with_the_reference(kernels: str, size: tuple[int, ...]) -> None:
    x, weight, bias, add = layer(*size)
    ready = transform_weight(weight)
    found = winograd(x.contiguous(), ready, bias, add.contiguous(), relu=True)
    assert torch.allclose(found, winograd_reference(x, ready, bias, add, True), atol=2e-5)


@every_kernel
def test_its_errors_are_a_few_times_those_of_the_convolution(kernels: str) -> None:
    """Root mean squares, of a layer as wide as VGG16's with inputs as ReLU leaves them: 1.3e-6 of the results."""
    x, weight, bias, _ = layer(1, 512, 64, 12, 12)
    x = F.relu(x)
    right = exact(x, weight, bias, None, False)
    error = (winograd(x, transform_weight(weight), bias).double() - right).square().mean().sqrt()
    assert error <= 2.5e-6 * right.square().mean().sqrt()


@compiled
def test_bits_depend_neither_on_threads_nor_on_the_other_images(kernels: str) -> None:
    x, weight, bias, add = layer(3, 40, 50, 41, 54)
    ready, before = transform_weight(weight), torch.get_num_threads()
    expected = winograd(x, ready, bias, add, relu=True)
    try:
        for threads in (1, 2, 3, 7) * 5:
            torch.set_num_threads(threads)
            assert torch.equal(winograd(x, ready, bias, add, relu=True), expected)
            assert torch.equal(winograd(x[1:2], ready, bias, add[1:2], relu=True), expected[1:2])
    finally:
        torch.set_num_threads(before)


@every_kernel
def test_what_is_no_number_is_not_hidden_and_stays_in_its_image(kernels: str) -> None:
    x, weight, bias, _ = layer(2, 20, 20, 9, 9)
    x[0, 3, 4, 4] = torch.nan
    found = winograd(x, transform_weight(weight), bias, relu=True)
    assert found[0, :, 3:6, 3:6].isnan().all() and found[1].isfinite().all()


@every_kernel
def test_nothing_of_nothing(kernels: str) -> None:
    x, weight, bias, _ = layer(2, 4, 6, 5, 5)
    assert winograd(x[:0], transform_weight(weight), bias).shape == (0, 6, 5, 5)


@compiled
def test_weights_of_another_layer_are_refused(kernels: str) -> None:
    x, weight, bias, add = layer(1, 8, 40, 5, 5)
    ready = transform_weight(weight)
    for wrong in ((x, ready, bias[:20], None), (x[:, :7], ready, bias, None), (x, ready, bias, add[:, :, :4])):
        with pytest.raises(ValueError, match="winograd: shapes do not fit together"):
            torch.ops.rcnn.winograd(*wrong, False)


WIDE = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}
OTHERS = [
    {"in_channels": 32}, {"out_channels": 63}, {"kernel_size": 1}, {"kernel_size": (3, 1)}, {"padding": 0},
    {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}, {"padding": "same"},
]  # fmt: skip


@pytest.mark.skipif(not ON_A_CPU[1:], reason="the compiled kernels are not installed")
def test_when_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    assert not pays(nn.Conv2d(**WIDE), torch.zeros(1, 64, 8, 8))
    x = torch.zeros(1, 64, 250, 250)  # 4.6 GFLOP
    assert pays(nn.Conv2d(**WIDE), x)
    assert not pays(nn.Conv2d(**WIDE), x.bfloat16()) and not pays(nn.Conv2d(**WIDE), x.double())
    for other in OTHERS:
        assert not pays(nn.Conv2d(**{**WIDE, **other}), x), other
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    assert not pays(nn.Conv2d(**WIDE), x)
