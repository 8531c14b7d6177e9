"""A step of SGD on a CPU against PyTorch's, and the bfloat16 copies of large weights."""

import copy

import pytest
import torch
from torch import nn

from rcnn.models.layers import convolve, dense
from rcnn.ops.update import all_finite
from rcnn.training import descent
from rcnn.training.descent import descend, keep_low
from rcnn.training.step import sgd
from tests import tiny


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dense(dense(x, self.first, relu=True), self.last)


def test_steps_are_those_of_pytorchs_optimiser() -> None:
    torch.manual_seed(0)
    ours = Net()
    theirs = copy.deepcopy(ours)
    optimisers = [sgd(net, momentum=0.9, weight_decay=0.1) for net in (ours, theirs)]
    for _ in range(4):
        x = torch.randn(5, 6)
        for net, optimiser in zip((ours, theirs), optimisers, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = 0.05
            net(x).square().sum().backward()
        assert descend(ours, optimisers[0], torch.tensor(1.0), clip=1.0)
        nn.utils.clip_grad_value_(theirs.parameters(), 1.0)
        optimisers[1].step()
        optimisers[1].zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) and a.grad is None


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_what_is_not_finite_changes_nothing(where: str) -> None:
    net = Net()
    optimiser = sgd(net, momentum=0.9, weight_decay=0.1)
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(5, 6)).sum().backward()
    assert net.last.bias.grad is not None
    if where == "gradient":
        net.last.bias.grad[0] = torch.nan
    assert not descend(net, optimiser, torch.tensor(torch.inf if where == "loss" else 1.0), clip=0.0)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert net.last.bias.grad is None


def test_large_layers_compute_with_their_low_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LARGE", 48)
    net = Net()
    optimiser = sgd(net, momentum=0.9, weight_decay=0.0)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    keep_low(net)
    assert hasattr(net.first, "low") and not hasattr(net.last, "low")
    assert set(net.state_dict()) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    before = net.first.weight.detach().clone()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            net(torch.randn(5, 6)).float().square().sum().backward()
        assert net.first.weight.grad is None  # its gradient is at the copy
        assert descend(net, optimiser, torch.tensor(1.0), clip=0.0)
        assert torch.equal(net.first.low, net.first.weight.bfloat16())  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.equal(before, net.first.weight)


@pytest.mark.parametrize("relu", [True, False])
def test_layers_with_a_copy_have_the_gradients_of_those_without(relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear layer and of a convolution, under autocast."""
    monkeypatch.setattr(descent, "LARGE", 1)
    torch.manual_seed(0)
    for layer, shape in ((nn.Linear(12, 8), (5, 3, 2, 2)), (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 6, 5))):
        layer.to(memory_format=torch.channels_last)
        plain = copy.deepcopy(layer)
        keep_low(layer, factors=False)
        found = []
        for each in (layer, plain):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                y = dense(x, each, relu=relu) if isinstance(each, nn.Linear) else convolve(x, each, relu=relu)
            y.float().square().sum().backward()
            weight = each.low if hasattr(each, "low") else each.weight
            found.append([y.detach(), x.grad, weight.grad.float(), each.bias.grad])  # pyright: ignore
        assert layer.weight.grad is None and layer.low.grad.dtype == torch.bfloat16  # pyright: ignore
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))


def test_convolutions_with_a_normalisation_need_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LARGE", 1)
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False))
    keep_low(layer)
    assert not hasattr(layer[0], "low")


def test_frozen_layers_need_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LARGE", 1)
    net = Net().requires_grad_(False)
    keep_low(net)
    assert not hasattr(net.first, "low")


def test_other_units_of_the_box_layer_drop_the_copy_of_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LARGE", 1)
    model, batch = tiny.detector(), tiny.batch()
    model.head.bbox_pred.weight.data.normal_(std=0.1)
    keep_low(model)
    assert torch.equal(model.head.bbox_pred.low, model.head.bbox_pred.weight.bfloat16())  # pyright: ignore
    model(batch.images, batch.image_size, batch.scale)  # without autocast: by the float32 weights
    model.change_box_units(torch.randn(4, 4) * 0.1, torch.full((4, 4), 0.3))
    keep_low(model)
    assert torch.equal(model.head.bbox_pred.low, model.head.bbox_pred.weight.bfloat16())  # pyright: ignore


def test_a_layer_with_a_copy_that_computes_without_it_is_trained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LARGE", 1)
    net = Net()
    optimiser = sgd(net, momentum=0.9, weight_decay=0.0)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    keep_low(net)
    before = net.first.weight.detach().clone()
    net(torch.randn(5, 6)).square().sum().backward()  # no autocast
    assert descend(net, optimiser, torch.tensor(1.0), clip=0.0)
    assert not torch.equal(before, net.first.weight)
    assert torch.equal(net.first.low, net.first.weight.bfloat16())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("value", [1.0, 1e30, torch.inf, torch.nan])
def test_a_gradient_is_looked_at_where_its_factors_do_not_bound_it(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "LARGE", 48)
    net, seen = Net(), []
    optimiser = sgd(net, momentum=0.9, weight_decay=0.1)
    monkeypatch.setattr(descent, "all_finite", lambda tensors: seen.append(tensors) or all_finite(tensors))
    keep_low(net)
    before = net.first.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        (net(torch.full((5, 6), value)).float().sum() * 1e20).backward()
    ((grad, x),) = net.first.factors  # pyright: ignore
    assert net.first.low.grad is None  # pyright: ignore
    finite = bool((grad.t() @ x).isfinite().all())
    assert descend(net, optimiser, torch.tensor(1.0), clip=0.0) == finite == (value == 1)
    assert any(x.shape == net.first.weight.shape for x in seen[0]) == (value != 1)
    assert torch.equal(net.first.weight, before) or finite
    assert net.first.factors == [] and net.first.low.grad is None  # pyright: ignore


@pytest.mark.parametrize("rows", [40, 8])  # of 8 the gradient is there as a whole
@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("times", [1, 2])
def test_steps_by_the_factors_of_a_gradient_are_those_by_the_gradient(
    rows: int, clip: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "LARGE", 1)
    monkeypatch.setattr("rcnn.ops.large_linear.LEAST_WEIGHTS", 0)
    torch.manual_seed(0)
    by_factors = nn.Linear(512, 64)
    layers = [by_factors, copy.deepcopy(by_factors)]
    optimisers = [sgd(layer, momentum=0.9, weight_decay=0.1) for layer in layers]
    for layer, optimiser, factors in zip(layers, optimisers, (True, False), strict=True):
        keep_low(layer, factors=factors)
        for group in optimiser.param_groups:
            group["lr"] = 0.1
    for _ in range(3):
        pictures = torch.randn(times, rows, 512)
        for layer, optimiser in zip(layers, optimisers, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                torch.stack([dense(x, layer).float().square().mean() for x in pictures]).sum().backward()
            assert descend(layer, optimiser, torch.tensor(1.0), clip=clip)
            assert torch.equal(layer.low, layer.weight.bfloat16())  # pyright: ignore
    ours, theirs = (layer.weight for layer in layers)
    assert torch.allclose(ours, theirs, atol=2e-4) and not torch.equal(ours, torch.zeros_like(ours))
    for a, b in zip(*(optimiser.state.values() for optimiser in optimisers), strict=True):
        assert torch.allclose(a["momentum_buffer"], b["momentum_buffer"], rtol=0.02, atol=2e-3)
