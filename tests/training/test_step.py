from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch
from rcnn.training.losses import joint_loss
from rcnn.training.step import TrainStep, sgd
from tests import tiny


class Weights(FasterRCNN):
    """A stand-in for a detector: a matrix in channels-last, a vector, and a frozen matrix."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        weight = torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)


def slope(model: Weights, batch: Batch) -> dict[str, Tensor]:
    """A loss whose gradient is batch.scale[0] times 1, 2, 3, ... in the weight, and ten times that in the bias."""
    factors = torch.arange(1.0, 25.0).view(2, 3, 2, 2) * batch.scale[0]
    loss = (model.weight * factors).sum() + (model.bias * 10 * factors[0, :, 0, 0]).sum()
    return {"loss": loss, "other": loss * 2}


def step_of(model: Weights, *, clip: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.1) -> TrainStep:
    return TrainStep(model, slope, sgd(model, momentum=momentum, weight_decay=weight_decay), clip=clip, bf16=False)


def scaled(value: float) -> Batch:
    return tiny.batch()._replace(scale=torch.full((2,), value))


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(map(torch.equal, model.parameters(), before))


# --- one update -----------------------------------------------------------------------------------------------------


def test_definition_of_two_updates() -> None:
    model = Weights()
    weight, bias, frozen = copies(model)
    step = step_of(model)
    gradient = torch.arange(1.0, 25.0).view(2, 3, 2, 2)
    momentum, momentum_bias = torch.zeros_like(gradient), torch.zeros(3)
    for lr, factor in ((0.1, 1.0), (0.01, -2.0)):
        scalars = step(scaled(factor), lr)
        momentum = 0.9 * momentum + factor * gradient + 0.1 * weight
        momentum_bias = 0.9 * momentum_bias + factor * 10 * gradient[0, :, 0, 0]
        weight, bias = weight - lr * momentum, bias - lr * momentum_bias
        assert not any(value.requires_grad for value in scalars.values())
    assert torch.allclose(model.weight, weight, atol=1e-5)
    assert torch.allclose(model.bias, bias, atol=1e-5)  # no decay on what has one dimension
    assert torch.equal(model.frozen, frozen)
    assert all(p.grad is None for p in model.parameters())


def test_decay_is_on_weights_only_and_frozen_ones_are_left_out() -> None:
    model = Weights()
    groups = sgd(model, momentum=0.9, weight_decay=0.1).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (1, 0.0)]
    assert groups[0]["params"][0] is model.weight and groups[1]["params"][0] is model.bias


def test_each_element_of_the_gradient_is_clamped() -> None:
    model = Weights()
    before = copies(model)
    step_of(model, clip=5.0, momentum=0.0, weight_decay=0.0)(scaled(-1.0), 1.0)
    assert torch.allclose(model.weight - before[0], torch.arange(1.0, 25.0).view(2, 3, 2, 2).clamp(max=5))
    assert torch.allclose(model.bias - before[1], torch.tensor([5.0, 5.0, 5.0]))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    def cliff(model: Weights, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (model.weight * 0).sum().abs().sqrt()}  # 0, with an infinite slope

    model = Weights()
    before = model.weight.detach().clone()
    step = TrainStep(model, cliff, sgd(model, momentum=0.9, weight_decay=0.1), clip=5.0, bf16=False)
    assert step(tiny.batch(), 0.1)["loss"].isnan()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_a_loss_that_is_not_finite_changes_nothing(bad: float, clip: float) -> None:
    reference, model = Weights(), Weights()
    model.load_state_dict(reference.state_dict())
    sound, hit = step_of(reference, clip=clip), step_of(model, clip=clip)
    for value in (bad, 1.0, bad, 0.5):  # at first, and when there is momentum
        before = copies(model)
        loss = hit(scaled(value), 0.1)["loss"]
        assert loss.isfinite().item() == (value != bad and value == value)
        if value in (1.0, 0.5):
            sound(scaled(value), 0.1)
        else:
            assert unchanged(model, before)
    assert unchanged(model, copies(reference))


# --- with a detector ------------------------------------------------------------------------------------------------


def training(model: FasterRCNN, *, bf16: bool = False, clip: float = 5.0, backend: object = None) -> TrainStep:
    loss = partial(joint_loss, rules=tiny.rules())
    optimiser = sgd(model, momentum=0.9, weight_decay=5e-4)
    return TrainStep(model.train(), loss, optimiser, clip=clip, bf16=bf16, backend=backend)


@pytest.mark.parametrize("bf16", [False, True])
def test_losses_fall(bf16: bool) -> None:
    step, batch = training(tiny.detector(), bf16=bf16), tiny.batch()
    found = [step(batch, 0.1) for _ in range(10)]
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert all(value.dtype == torch.float32 for value in found[0].values())
    assert all(p.dtype == torch.float32 for p in step.parameters)


def test_frozen_parts_stay_and_the_rest_moves() -> None:
    model = tiny.detector()
    model.backbone.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step = training(model)
    step(tiny.batch(), 0.1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("backbone.")}


def test_weights_that_are_broken_are_noticed_and_do_not_crash() -> None:
    model = tiny.detector()
    with torch.no_grad():
        model.backbone.conv.weight.fill_(torch.nan)
    step = training(model)
    before = [p.clone() for p in model.rpn.parameters()]
    assert not step(tiny.batch(), 0.1)["loss"].isfinite()
    assert all(map(torch.equal, model.rpn.parameters(), before))


def test_steps_repeat_bit_for_bit() -> None:
    runs = []
    for _ in range(2):
        step = training(tiny.detector(dropout=0.5))
        torch.manual_seed(3)
        losses = [step(tiny.batch(seed=i), 0.05)["loss"] for i in range(4)]
        runs.append((losses, copies(step.model)))
    assert all(map(torch.equal, runs[0][0], runs[1][0]))
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


# --- compiled -------------------------------------------------------------------------------------------------------

COUNTS = ((2, 1), (0, 0), (4, 0), (3, 4))


def compare(backend: str, *, bf16: bool = False, **changes: object) -> int:
    """Trains compiled and eagerly with batches of any number of boxes; returns the number of programs compiled."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = training(tiny.detector(**changes), backend=counter, bf16=bf16)
    eager = training(tiny.detector(**changes), bf16=bf16)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    for i, objects in enumerate(COUNTS):
        batch = tiny.batch(objects=objects, seed=i)
        ours, theirs = compiled(batch, 0.02), eager(batch, 0.02)
        for name in theirs:
            assert torch.allclose(ours[name], theirs[name], **tolerance), f"{name} of batch {i}"
    for a, b in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(a, b, **tolerance)
    return counter.frame_count


@pytest.mark.compile
@pytest.mark.parametrize(
    ("roi_op", "offset", "bf16"), [("pool", 1.0, False), ("align", 0.0, False), ("pool", 1.0, True)]
)
def test_one_program_serves_any_number_of_boxes(roi_op: str, offset: float, bf16: bool) -> None:
    assert compare("aot_eager", roi_op=roi_op, offset=offset, bf16=bf16) == 1


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own, inside inductor
def test_agreement_of_inductor_with_eager() -> None:
    assert compare("inductor") == 1
