"""Quantised layers: the reference against exact arithmetic, the packed kernels against the reference."""

import os
import platform
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.quantised import (
    PLAIN,
    PackedConv,
    PackedLinear,
    QuantisedConv,
    QuantisedLinear,
    from_levels,
    has_kernels,
    pack_layers,
    quantise_layers,
    quantise_weight,
    to_levels,
)

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not has_kernels(CPU), reason="int8 wants a processor with VNNI or AMX")
NONE = (0.0, 0.0)


def random_norm(channels: int) -> FrozenBatchNorm:
    norm = FrozenBatchNorm(channels)
    norm.weight.copy_(torch.randn(channels))  # of either sign
    norm.bias.copy_(torch.randn(channels))
    norm.running_mean.copy_(torch.randn(channels))
    norm.running_var.copy_(torch.rand(channels) + 0.5)
    return norm


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


# --- definition


def test_a_map_in_steps_and_back() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 0.24, 0.26, 126.0, 500.0]).view(1, 1, 1, 7)
    levels = to_levels(x, 0.5, 4.0)
    assert levels.flatten().tolist() == [0, 2, 4, 4, 5, 255, 255]
    back = from_levels(levels, 0.5, 4.0, dtype=torch.float32)
    assert back.flatten().tolist() == [-2.0, -1.0, 0.0, 0.0, 0.5, 125.5, 125.5]
    assert to_levels(levels, 9.0, 9.0) is levels


def test_a_weight_in_steps_of_each_output() -> None:
    levels, step = quantise_weight(torch.tensor([[127.0, -63.4], [0.0, 0.0], [-0.127, 0.001]]))
    assert levels.tolist() == [[127, -63], [0, 0], [-127, 1]]
    assert torch.allclose(step[[0, 2]], torch.tensor([1.0, 0.001]))


def test_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 1)
    quantised = QuantisedConv(conv)
    with torch.no_grad():
        conv.weight.fill_(2.0)
        conv.bias.fill_(-1.0)  # pyright: ignore[reportOptionalMemberAccess]
    quantised.fill(conv, torch.tensor([[0.5, 0.0], NONE, [0.25, 8.0]]))
    x = torch.tensor([0.0, 0.3, 1.0, 100.0]).view(1, 1, 1, 4)
    assert quantised(x).flatten().tolist() == [4, 8, 12, 255]  # 0.3 counts as 0.5; -1, 0, 1 and 199 in steps of 0.25
    assert quantised(x, relu=True).flatten().tolist() == [8, 8, 12, 255]
    quantised.fill(conv, torch.tensor([[0.5, 0.0], NONE, NONE]))
    assert torch.allclose(quantised(x).flatten(), torch.tensor([-1.0, 0.0, 1.0, 199.0]), atol=1e-6)


def test_plain_layers_hold_the_rounded_weights() -> None:
    conv, linear = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Linear(6, 5)
    of_conv, of_linear = QuantisedConv(conv), QuantisedLinear(linear)
    of_conv.fill(conv, torch.zeros(3, 2))
    of_linear.fill(linear, torch.zeros(3, 2))
    x, rows = torch.randn(1, 3, 7, 8), torch.randn(2, 6)
    with torch.no_grad():
        assert torch.allclose(of_conv.plain()(x), conv(x), atol=0.02)
        assert torch.allclose(of_linear.plain()(rows), linear(rows), atol=0.02)
    assert not torch.equal(of_conv.plain().weight, conv.weight)


# --- properties


@pytest.mark.parametrize("norm", [False, True])
def test_is_near_the_layer_it_was_made_of(norm: bool) -> None:
    conv, follows = nn.Conv2d(16, 8, 3, padding=1, bias=not norm), random_norm(8) if norm else None
    quantised, x = QuantisedConv(conv), channels_last(2, 16, 9, 7)
    quantised.fill(conv, torch.tensor([[8 / 255, 128.0], NONE, NONE]))
    with torch.no_grad():
        exact = conv(x) if follows is None else follows(conv(x))
        assert (quantised(x, follows) - exact).abs().max() < 0.03 * exact.abs().max()


def test_the_layers_that_decide_stay_plain() -> None:
    model = nn.ModuleDict({"rpn": nn.ModuleDict({"conv": nn.Conv2d(2, 2, 3), "cls": nn.Conv2d(2, 2, 1)})})
    quantise_layers(model)
    assert isinstance(model.get_submodule("rpn.conv"), QuantisedConv)
    assert "rpn.cls" in PLAIN and isinstance(model.get_submodule("rpn.cls"), nn.Conv2d)


# --- agreement


def assert_within_a_step(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if got.dtype == torch.uint8:
        assert (got.int() - expected.int()).abs().max() <= 1
        assert (got == expected).float().mean() > 0.98  # a half, rounded the other way
        assert len(got.unique()) > 20
    else:
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("add", ["nothing", "bytes", "floats"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("size", "stride", "channels"), [(3, 1, 32), (3, 2, 5), (1, 1, 64), (1, 2, 16), (7, 2, 3)])
def test_packed_convolution(
    size: int, stride: int, channels: int, norm: bool, relu: bool, whole: bool, add: str
) -> None:
    """Inputs of either sign, so that a map is padded with its zero point; a shortcut with a zero point of its own."""
    conv = nn.Conv2d(channels, 24, size, stride, size // 2, bias=not norm)
    follows = random_norm(24) if norm else None
    quantised = QuantisedConv(conv)
    output = (0.03, 0.0 if relu else 120.0) if whole else NONE
    quantised.fill(conv, torch.tensor([[0.03, 101.0], [0.02, 90.0] if add != "nothing" else NONE, output]))
    x = channels_last(2, channels, 12, 11)
    shape = torch.Size([2, 24, -(-12 // stride), -(-11 // stride)])
    added = None if add == "nothing" else channels_last(*shape)
    if added is not None and add == "bytes":
        added = to_levels(added, 0.02, 90.0)
    before = None if added is None else added.clone()
    packed = PackedConv(quantised, torch.float32)
    with torch.no_grad():
        for _ in range(2):
            got = packed(x, follows, relu=relu, add=added)
            assert_within_a_step(got, quantised(x, follows, relu=relu, add=added))
    assert added is None or before is None or torch.equal(added, before)  # the sum is not written over the shortcut
    assert packed.conv is None


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linear_layer_of_a_map_and_of_rows(dtype: torch.dtype) -> None:
    for shape in ((9, 8, 3, 3), (9, 72)):
        linear = nn.Linear(72, 40)
        quantised = QuantisedLinear(linear)
        quantised.fill(linear, torch.tensor([[0.03, 101.0], NONE, [0.01, 0.0]]))
        x = torch.randn(shape).to(dtype)
        x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
        packed = PackedLinear(quantised, dtype)
        with torch.no_grad():
            assert_within_a_step(packed(x, relu=True), quantised(x, relu=True))
        assert quantised.weight.shape == (40, 72)  # the file's order is as it was


@needs_kernels
def test_threads_may_begin_at_once() -> None:
    conv = nn.Conv2d(16, 24, 3, padding=1)
    quantised = QuantisedConv(conv)
    quantised.fill(conv, torch.tensor([[0.03, 101.0], NONE, NONE]))
    x, found = channels_last(1, 16, 12, 12), []
    packed = PackedConv(quantised, torch.float32)
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        with torch.no_grad():
            found.append(packed(x))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(y, found[0]) for y in found)


@pytest.mark.parametrize("most", ["AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "ALL"])
def test_is_right_with_the_instructions_of_other_processors(most: str) -> None:
    """The largest numbers, which sums of 16 bits, all that oneDNN has without VNNI, cannot hold."""
    done = subprocess.run(
        [sys.executable, "-c", LARGEST], env=os.environ | {"ONEDNN_MAX_CPU_ISA": most}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    way, kinds = done.stdout.split()
    assert kinds == ("Conv2d,Linear" if way == "False" else "PackedConv,PackedLinear")
    if most == "ALL" and torch.cpu._is_vnni_supported():
        assert way == "True"  # else every other test of kernels would be left out
    if most in ("AVX2", "AVX512_CORE") and torch.backends.mkldnn.is_available() and platform.machine() == "x86_64":
        assert way == "False" and "no kernel for int8, which wants VNNI or AMX" in done.stderr


LARGEST = """
import logging, torch
from torch import nn
from rcnn.models.quantised import QuantisedConv, has_kernels, pack_layers, quantise_layers
logging.basicConfig()
model = nn.ModuleDict({"conv": nn.Conv2d(32, 16, 3), "fc": nn.Linear(64, 16)})
inputs, steps = {"conv": torch.full((1, 32, 6, 6), 255.0), "fc": torch.full((9, 64), 255.0)}, torch.zeros(3, 2)
for layer in model.values():
    nn.init.ones_(layer.weight)
steps[0, 0] = 1.0
plain = dict(model.items())
quantise_layers(model)
for name, layer in plain.items():
    model[name].fill(layer, steps)
pack_layers(model, torch.float32)
with torch.no_grad():
    for name, x in inputs.items():
        assert torch.allclose(model[name](x), plain[name](x), rtol=1e-5), name
print(has_kernels(torch.device("cpu")), ",".join(type(layer).__name__ for layer in model.values()))
"""


def test_without_kernels_the_rounded_weights_run_in_floating_point(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rcnn.models.quantised.has_kernels", lambda device: False)
    conv = nn.Conv2d(2, 3, 1)
    model = nn.Sequential(conv)
    quantise_layers(model)
    quantised = model[0]
    assert isinstance(quantised, QuantisedConv)
    quantised.fill(conv, torch.zeros(3, 2))
    pack_layers(model, torch.float32)
    assert type(model[0]) is nn.Conv2d and torch.allclose(model[0].weight, conv.weight, atol=0.01)
    assert "no kernel for int8, which wants VNNI or AMX" in caplog.text
