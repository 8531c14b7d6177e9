"""Which steps a layer gets: its own range, or those of the layer whose map it reads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rcnn.models.calibration import Traced, Watched, quantise, trace, watch
from rcnn.models.layers import FusedConv, convolve, fuse
from rcnn.models.quantised import ADD, INPUT, OUTPUT, QuantisedConv
from rcnn.ops.pool import max_pool


class Net(nn.Module):
    """Two convolutions with a pooling between, then one with a shortcut whose result leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool(convolve(x, self.first, relu=True), 2, stride=2)
        y = convolve(pooled, self.second, relu=True)
        return convolve(y, self.third, add=pooled) * 1.0


def calibrated(*inputs: Tensor) -> tuple[Net, Net]:
    """The quantised network and the plain one."""
    torch.manual_seed(0)
    plain, watched, model = Net(), Net(), Net()
    watched.load_state_dict(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    fuse(watched, torch.float32)
    watch(watched)
    with torch.no_grad():
        for x in inputs:
            watched(x)
    quantise(model, watched)
    return model, plain


def steps(model: Net, name: str) -> Tensor:
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantisedConv)
    return layer.steps


def test_a_map_has_the_steps_of_its_maker_wherever_it_is_read() -> None:
    x = torch.randn(1, 3, 8, 8)
    model, plain = calibrated(x, x * 0.5)
    first = steps(model, "first")
    with torch.no_grad():
        widest = convolve(x, plain.first, relu=True).max() / 255
    assert torch.allclose(first[OUTPUT], torch.tensor([widest, 0.0]))
    assert torch.equal(first[OUTPUT], steps(model, "second")[INPUT])
    assert torch.equal(first[OUTPUT], steps(model, "third")[ADD])
    assert torch.equal(steps(model, "second")[OUTPUT], steps(model, "third")[INPUT])


def test_an_input_of_either_sign_has_a_zero_point_and_what_leaves_is_not_quantised() -> None:
    x = torch.randn(1, 3, 8, 8)
    model, _ = calibrated(x)
    step, zero = steps(model, "first")[INPUT].tolist()
    assert -zero * step == pytest.approx(float(x.min()), abs=step)
    assert (255 - zero) * step == pytest.approx(float(x.max()), abs=step)
    assert steps(model, "third")[OUTPUT].tolist() == [0.0, 0.0]
    assert steps(model, "first")[ADD].tolist() == [0.0, 0.0]


def test_the_quantised_network_is_near_the_plain_one() -> None:
    x = torch.randn(1, 3, 8, 8)
    model, plain = calibrated(x)
    with torch.no_grad():
        expected = plain(x)
        assert (model(x) - expected).abs().max() < 0.05 * expected.abs().max()
        fuse(model, torch.float32)
        assert (model(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_look_at_the_shape_takes_no_map_but_any_sum_does() -> None:
    fused = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1)})
    fuse(fused, torch.float32)
    watch(fused)
    maker = fused["a"]
    assert isinstance(maker, Watched)
    x = trace(torch.randn(1, 3, 4, 4), maker)
    assert x.shape == (1, 3, 4, 4) and isinstance(max_pool(x, 2, stride=2), Traced) and not maker.is_seen
    assert not isinstance(x + 1, Traced) and maker.is_seen


@pytest.mark.parametrize("take", [lambda x: torch.cat([x, x]), lambda x: torch.sum(input=x), lambda x: x.mT])
def test_a_map_in_a_list_by_keyword_or_turned_is_taken_too(take: Callable[[Tensor], Tensor]) -> None:
    maker = Watched(FusedConv(nn.Conv2d(3, 3, 1), torch.float32))
    take(trace(torch.randn(1, 3, 4, 4), maker))
    assert maker.is_seen


@pytest.mark.parametrize("bad", [[], [torch.nan], [1.0, torch.nan], [torch.nan, 1.0], [torch.inf]])
def test_a_layer_that_computed_nothing_or_no_number_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="--calibrate: first computed nothing, or no finite values"):
        calibrated(*(torch.full((1, 3, 8, 8), value) for value in bad))


def test_weights_that_are_no_numbers_are_refused() -> None:
    model, watched = Net(), Net()
    with torch.no_grad():
        model.second.weight[0, 0, 0, 0] = torch.nan
    fuse(watched, torch.float32)
    watch(watched)
    with torch.no_grad():
        watched(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match="second computed nothing, or no finite values"):
        quantise(model, watched)


def test_layers_that_the_method_leaves_out_stay_unfilled() -> None:
    torch.manual_seed(0)
    model, watched = nn.ModuleDict({"rpn": nn.Conv2d(3, 3, 1), "head": nn.Conv2d(3, 3, 1)}), nn.ModuleDict()
    watched.update(model)
    fuse(watched, torch.float32)
    watch(watched, ("rpn",))
    with torch.no_grad():
        watched["head"](torch.randn(1, 3, 4, 4))
    quantise(model, watched)
    assert all(isinstance(model[name], QuantisedConv) for name in model)
    assert not model["rpn"].steps.any() and model["head"].steps[INPUT, 0] > 0
