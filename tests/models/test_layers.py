"""A convolution or linear layer with what follows it: plain, fused in training, and fused for inference."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models.layers import (
    FusedConv,
    FusedLinear,
    LowRank,
    activate,
    can_pack,
    convolve,
    convolve_and_pool,
    convolve_pictures,
    dense,
    fuse,
    truncate,
)
from rcnn.models.norm import FrozenBatchNorm
from rcnn.ops import has_kernels


def random_norm(channels: int) -> FrozenBatchNorm:
    norm = FrozenBatchNorm(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = torch.rand(channels) + 0.5
    return norm


def by_definition(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm | None, add: Tensor | None, relu: bool) -> Tensor:
    y = conv(x) if norm is None else norm(conv(x))
    y = y if add is None else y + add
    return F.relu(y) if relu else y


CASES = [
    pytest.param(norm, add, relu, groups, id=f"norm={norm} add={add} relu={relu} groups={groups}")
    for norm in (False, True)
    for add in (False, True)
    for relu in (False, True)
    for groups in (1, 2)
]


def case(
    norm: bool, add: bool, groups: int, size: int = 3, stride: int = 2
) -> tuple[Tensor, nn.Conv2d, FrozenBatchNorm | None, Tensor | None]:
    conv = nn.Conv2d(4, 6, size, stride=stride, padding=size // 2, groups=groups, bias=not norm)
    x = torch.randn(2, 4, 7, 8).to(memory_format=torch.channels_last)
    return x, conv, random_norm(6) if norm else None, torch.randn_like(conv(x)).detach() if add else None


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize(("norm", "add", "relu", "groups"), CASES)
def test_value_and_every_gradient_are_those_of_the_parts(
    norm: bool, add: bool, relu: bool, groups: int, size: int, stride: int
) -> None:
    x, conv, follows, added = case(norm, add, groups, size, stride)
    leaves = [x, *conv.parameters(), *(follows.parameters() if follows else ()), *([] if added is None else [added])]
    for leaf in leaves:
        leaf.requires_grad_(True)
    ours, parts = convolve(x, conv, follows, relu=relu, add=added), by_definition(x, conv, follows, added, relu)
    assert torch.allclose(ours, parts, atol=1e-5)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((parts * weight).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("norm", "add", "relu", "groups"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_for_inference_is_the_plain_layer(
    norm: bool, add: bool, relu: bool, groups: int, dtype: torch.dtype
) -> None:
    x, conv, follows, added = case(norm, add, groups)
    fused = FusedConv(conv, dtype)
    with torch.no_grad():
        expected = by_definition(x, conv, follows, added, relu)
        for image in (x, x[:1], x):  # packed for the first shape, used with others
            given = None if added is None else added[: len(image)].to(dtype)
            got = convolve(image.to(dtype), fused, follows, relu=relu, add=given)
            assert got.dtype == dtype
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            assert torch.allclose(got.float(), expected[: len(image)], atol=tolerance, rtol=tolerance)
    assert fused.conv is None  # the float32 weights are no longer held


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("kernels", ["", "reference"])
def test_a_wide_convolution_by_winograds_method(
    norm: bool, with_add: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCNN_KERNELS", kernels)
    monkeypatch.setattr("rcnn.ops.winograd.LEAST_WORK", 0)
    conv, follows = nn.Conv2d(64, 80, 3, padding=1, bias=not norm), random_norm(80) if norm else None
    x, fused = (
        torch.randn(2, 64, 7, 9).to(memory_format=torch.channels_last),
        FusedConv(conv, torch.float32, winograd=True),
    )
    added = torch.randn(2, 80, 7, 9) if with_add else None
    with torch.no_grad():
        expected = by_definition(x, conv, follows, added, relu=True)
        assert torch.allclose(convolve(x, fused, follows, relu=True, add=added), expected, atol=1e-5)
    there = has_kernels(x.device) and not kernels
    assert (fused.weight.shape == (36, 3, 64, 32)) == there  # else it is run as without


def test_winograds_method_is_asked_for_and_is_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    monkeypatch.setattr("rcnn.ops.winograd.LEAST_WORK", 0)
    x = torch.randn(1, 64, 6, 6)
    for dtype, winograd in ((torch.float32, False), (torch.bfloat16, True)):
        model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
        fuse(model, dtype, winograd=winograd)
        with torch.no_grad():
            convolve(x.to(dtype), model[0])
        assert model[0].weight.shape == (64, 64, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 2, 2)])
def test_dense_of_vectors_and_of_maps(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    linear, x = nn.Linear(12, 7), torch.randn(shape)
    expected = F.relu(linear(x.flatten(1)))
    assert torch.equal(dense(x, linear, relu=True), expected)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        got = dense(x.to(dtype), FusedLinear(linear, dtype), relu=True)
    assert torch.allclose(got.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_the_fused_convolution_keeps_channels_last() -> None:
    x = torch.randn(1, 8, 6, 6).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = convolve(x, FusedConv(nn.Conv2d(8, 16, 3, padding=1), torch.float32), relu=True)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_threads_that_begin_together_prepare_a_layer_once_or_twice_but_right() -> None:
    conv, linear, x = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16 * 36, 4), torch.randn(1, 8, 6, 6)

    def run(_: int) -> Tensor:
        with torch.no_grad():
            return dense(convolve(x, fused, relu=True), last)

    with torch.no_grad():
        expected = linear(F.relu(conv(x)).flatten(1))
    for _ in range(20):
        fused, last = FusedConv(conv, torch.float32), FusedLinear(linear, torch.float32)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(run, range(4)):
                assert torch.allclose(found, expected, atol=1e-5)


def test_fuse_replaces_all_layers_and_leaves_weights_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 2)))
    before = copy.deepcopy(model.state_dict())
    layers = [model[0], model[1]]
    fuse(model, torch.float32)
    assert isinstance(model[0], FusedConv) and isinstance(model[1], nn.Sequential)
    assert isinstance(model[1][0], FusedLinear)
    assert isinstance(layers[0], nn.Conv2d) and torch.equal(layers[0].weight, before["0.weight"])


def test_in_autocast_the_training_form_computes_in_bfloat16() -> None:
    x, conv = torch.randn(1, 4, 6, 6), nn.Conv2d(4, 4, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(x, conv, relu=True)
        assert y.dtype == F.conv2d(x, conv.weight, conv.bias).dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_pooled_it_is_convolution_relu_and_pooling(
    trained: bool, fused: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for least in ("LEAST_WORK", "MUCH_WORK"):
        monkeypatch.setattr(f"rcnn.ops.convolution.{least}", 0)
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=biased).requires_grad_(trained)
    x = torch.randn(2, 64, 9, 14).bfloat16().to(memory_format=torch.channels_last)
    expected = F.max_pool2d(F.conv2d(x.double(), conv.weight.bfloat16().double(), None, padding=1), 2, 2)
    expected = F.relu(expected if conv.bias is None else expected + conv.bias.double()[:, None, None])
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve_and_pool(x, FusedConv(conv, torch.bfloat16) if fused else conv)
    assert y.dtype == torch.bfloat16 and y.requires_grad == (trained and not fused)
    assert torch.allclose(y.double(), expected, rtol=0.01, atol=0.01)


def test_other_types_are_not_packed() -> None:
    assert not can_pack(torch.zeros(1, dtype=torch.float64))
    conv, x = nn.Conv2d(3, 4, 1).double(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(convolve(x, conv, relu=True), F.relu(conv(x)))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (7, 7)])
def test_truncation_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 3, 6):
        first, second = truncate(weight, rank)
        assert first.shape == (rank, shape[1]) and second.shape == (shape[0], rank)
        missed = (second @ first - weight).square().sum()
        assert torch.allclose(missed, values[rank:].square().sum(), atol=1e-4)  # Eckart and Young


def test_a_layer_of_low_rank_is_its_two_layers_fused_or_not() -> None:
    layer, x = LowRank(12, 3, 7), torch.randn(5, 3, 2, 2).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = F.relu(layer.second(layer.first(x.flatten(1))))
        assert torch.allclose(dense(x, layer, relu=True), expected, atol=1e-6)
        fuse(layer, torch.float32)
        assert torch.allclose(dense(x, layer, relu=True), expected, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("differentiated", "trained"), [(False, False), (True, False), (True, True)])
def test_normalised_and_without_its_negative_part(layout: Any, differentiated: bool, trained: bool) -> None:
    x = torch.randn(2, 6, 5, 3).to(memory_format=layout).requires_grad_(differentiated)
    norm = random_norm(6).requires_grad_(trained)
    with torch.no_grad():
        norm.weight[0] = -1.0
    ours, parts = activate(x, norm), F.relu(norm(x))
    assert torch.allclose(ours, parts, atol=1e-6) and ours.is_contiguous(memory_format=layout)
    leaves = [leaf for leaf in (x, norm.weight, norm.bias) if leaf.requires_grad]
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), leaves) if leaves else (),
        torch.autograd.grad((parts * weight).sum(), leaves) if leaves else (),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_normalisation_in_bf16_rounds_once() -> None:
    x, norm = torch.randn(2, 6, 5, 3).bfloat16().to(memory_format=torch.channels_last), random_norm(6)
    scale, shift = (values.bfloat16().double()[:, None, None] for values in norm.scale_and_shift())
    y = activate(x, norm)
    assert y.dtype == torch.bfloat16
    if can_pack(x):
        assert torch.equal(y, F.relu(x.double() * scale + shift).bfloat16())


@pytest.mark.parametrize("shape", [(70, 256), (70, 64, 2, 2)])
def test_a_large_layer_in_bfloat16_by_either_kernel(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(256, 90), torch.randn(shape).bfloat16()
    expected = F.relu(F.linear(x.flatten(1).double(), linear.weight.bfloat16().double(), linear.bias.double()))
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    for least in (0, 1 << 40):
        monkeypatch.setattr("rcnn.ops.linear.LEAST_WEIGHTS", least)
        with torch.no_grad():
            got = dense(x, FusedLinear(linear, torch.bfloat16), relu=True)
        assert (got.double() - expected).abs().max() < 0.02


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_first_two_convolutions_of_pictures_are_the_two(
    trained: bool, fused: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for least in ("LEAST_WORK", "MUCH_WORK"):
        monkeypatch.setattr(f"rcnn.ops.convolution.{least}", 0)
    pair = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1, bias=biased))
    pair.requires_grad_(trained)
    x = torch.randn(2, 3, 9, 14).to(memory_format=torch.channels_last)
    expected = F.max_pool2d(pair[1](pair[0](x).relu()).relu(), 2, 2)
    if fused:
        fuse(pair, torch.bfloat16)
        x = x.bfloat16()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=not fused):
            y = convolve_pictures(x, pair[0], pair[1])
        assert y.dtype == torch.bfloat16 and y.requires_grad == (trained and not fused)
        assert torch.allclose(y.float(), expected, rtol=0.02, atol=0.02)
