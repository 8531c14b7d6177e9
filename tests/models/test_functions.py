"""Layers in training by our own kernels against oneDNN's."""

import pytest
import torch
from torch import nn

from rcnn.models.layers import convolve, convolve_and_pool, dense
from tests.models.test_layers import random_norm


@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.parametrize(("normalised", "added"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("least", [(0, 0), (1 << 40, 0), (0, 1 << 40)])
def test_values_and_gradients_by_our_kernels_are_those_by_onednn(
    differentiated: bool, normalised: bool, added: bool, least: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kernel, work in zip(("convolution", "weight_gradient"), least, strict=True):
        monkeypatch.setattr(f"rcnn.ops.{kernel}.LEAST_WORK", work)
    monkeypatch.setattr("rcnn.ops.convolution.MUCH_WORK", least[0])
    conv = nn.Conv2d(128, 160, 3, padding=1, bias=not normalised)
    norm, results = random_norm(160) if normalised else None, []
    x = torch.randn(2, 128, 9, 14).to(memory_format=torch.channels_last).requires_grad_(differentiated)
    add = torch.randn(2, 160, 9, 14, requires_grad=True) if added else None
    leaves = [*conv.parameters(), *([x] if differentiated else []), *([] if add is None else [add])]
    upstream = torch.randn(2, 160, 9, 14)
    for kernels in ("", "reference"):
        monkeypatch.setenv("RCNN_KERNELS", kernels)
        with torch.autocast("cpu", torch.bfloat16):
            y = convolve(x, conv, norm, relu=True, add=add)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream.bfloat16())])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.allclose(a, b, rtol=0.01, atol=0.01 * float(b.abs().max()))


@pytest.mark.parametrize("rows", [33, 128])
@pytest.mark.parametrize("differentiated", [True, False])
def test_a_trained_layer_in_bfloat16_by_our_kernels_and_by_onednn(
    rows: int, differentiated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcnn.ops.large_linear.LEAST_WEIGHTS", 0)
    linear, x = nn.Linear(512, 96), torch.randn(rows, 512, requires_grad=differentiated)
    linear.low = linear.weight.detach().bfloat16().requires_grad_()  # pyright: ignore[reportArgumentType]
    leaves, results = [linear.low, linear.bias, *([x] if differentiated else [])], []
    upstream = torch.randn(rows, 96).bfloat16()
    for kernels in ("", "reference"):
        monkeypatch.setenv("RCNN_KERNELS", kernels)
        with torch.autocast("cpu", torch.bfloat16):
            y = dense(x, linear, relu=True)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02 * float(b.abs().max()))


@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.parametrize("least", [0, 1 << 40])
def test_pooled_convolutions_by_our_kernels_and_by_onednn(
    differentiated: bool, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("convolution.LEAST_WORK", "convolution.MUCH_WORK"):
        monkeypatch.setattr(f"rcnn.ops.{name}", 0)
    monkeypatch.setattr("rcnn.ops.weight_gradient.LEAST_WORK", least)
    conv, results = nn.Conv2d(128, 160, 3, padding=1), []
    x = torch.randn(2, 128, 9, 15).to(memory_format=torch.channels_last).requires_grad_(differentiated)
    leaves, upstream = [*conv.parameters(), *([x] if differentiated else [])], torch.randn(2, 160, 4, 7).bfloat16()
    for kernels in ("", "reference"):
        monkeypatch.setenv("RCNN_KERNELS", kernels)
        with torch.autocast("cpu", torch.bfloat16):
            y = convolve_and_pool(x, conv)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        wrong = (a.float() - b.float()).abs() > 0.01 * float(b.abs().max()) + 0.01 * b.abs().float()
        assert wrong.float().mean() < 0.002  # where two cells are all but equal, another may be the largest
