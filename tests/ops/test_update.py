"""SGD on one weight: by hand, against torch.optim.SGD, and the kernels against the reference."""

import pytest
import torch
from torch import Tensor

from rcnn.ops.update import Rule, all_finite, copy_finite, sgd_

SHAPES = [(1,), (7,), (1000,), (3, 5), (300, 1024), (4, 3, 3, 3)]


def weights(shape: tuple[int, ...], grad_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    weight, grad, buffer = torch.randn(3, *shape).unbind(0)
    if len(shape) == 4:
        weight, grad, buffer = (x.contiguous(memory_format=torch.channels_last) for x in (weight, grad, buffer))
    return weight.contiguous() if len(shape) < 4 else weight, (grad * 3).to(grad_dtype), buffer


def test_one_step_by_hand() -> None:
    weight, buffer, low = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0]), torch.zeros(2, dtype=torch.bfloat16)
    sgd_(weight, [torch.tensor([9.0, -1.0])], buffer, low, Rule(lr=0.1, momentum=0.5, decay=0.25, clip=5.0))
    assert torch.allclose(buffer, torch.tensor([0.25 + 5.0 + 0.25, -1.0 - 0.5]))
    assert torch.allclose(weight, torch.tensor([1 - 0.55, -2 + 0.15]))
    assert torch.equal(low, weight.bfloat16())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_pytorch(shape: tuple[int, ...], clip: float, grad_dtype: torch.dtype) -> None:
    weight, grad, _ = weights(shape, grad_dtype)
    theirs = torch.nn.Parameter(weight.clone())
    optimiser = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    buffer, low = torch.zeros_like(weight), torch.zeros_like(weight, dtype=torch.bfloat16)
    for _ in range(3):
        theirs.grad = grad.float().clamp(-clip, clip) if clip else grad.float()
        optimiser.step()
        sgd_(weight, [grad], buffer, low, Rule(lr=0.1, momentum=0.9, decay=0.01, clip=clip))
    assert torch.allclose(weight, theirs, atol=1e-6)
    assert torch.equal(low, weight.bfloat16())


@pytest.mark.parametrize("offset", [0, 1, 3, 16])
def test_a_copy_may_begin_anywhere(offset: int) -> None:
    memory, weight = torch.full((200,), 7.0).bfloat16(), torch.randn(150)
    low, before = memory[offset : offset + 150], weight.clone()
    sgd_(weight, [torch.ones(150)], torch.zeros(150), low, Rule(lr=0.5, momentum=0.9, decay=0, clip=0))
    assert torch.equal(low, weight.bfloat16()) and torch.allclose(weight, before - 0.5)
    assert (memory[:offset] == 7).all() and (memory[offset + 150 :] == 7).all()


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_agree_with_the_reference(
    shape: tuple[int, ...], grad_dtype: torch.dtype, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, _, buffer = weights(shape, grad_dtype)
    grads = [weights(shape, grad_dtype)[1] for _ in range(parts)]
    results = []
    for kernels in ("", "reference"):
        monkeypatch.setenv("RCNN_KERNELS", kernels)
        mine = [weight.clone(), buffer.clone(), torch.zeros_like(weight, dtype=torch.bfloat16)]
        sgd_(mine[0], grads, mine[1], mine[2], Rule(lr=0.05, momentum=0.9, decay=0.1, clip=2.0))
        results.append(mine)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-2 if a.dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_the_gradient_is_the_mean_of_its_parts() -> None:
    one, other = torch.randn(2, 1000)
    weight, buffer = torch.zeros(1000), torch.zeros(1000)
    sgd_(weight, [one, other], buffer, None, Rule(lr=1.0, momentum=0.9, decay=0.0, clip=0.0))
    assert torch.allclose(buffer, (one + other) / 2) and torch.equal(weight, -buffer)


def test_a_gradient_stored_in_another_order_is_taken_right() -> None:
    weight, grad = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last), torch.randn(4, 3, 3, 3)
    expected = weight - 0.1 * grad
    sgd_(weight, [grad], torch.zeros_like(weight), None, Rule(lr=0.1, momentum=0.9, decay=0.0, clip=0.0))
    assert torch.allclose(weight, expected, atol=1e-6)


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found_wherever_it_is(
    kernels: str, dtype: torch.dtype, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCNN_KERNELS", kernels)
    x = torch.full((300_001,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite([torch.ones(2), x]) and all_finite([])
    for position in (0, 262_144, 300_000):
        y = x.clone()
        y[position] = wrong
        assert not all_finite([torch.ones(2), y])


@pytest.mark.parametrize("kernels", ["", "reference"])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_copies_are_looked_at_as_they_are_made(
    kernels: str, to: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCNN_KERNELS", kernels)
    x = torch.randn(5, 7, 33, 41)
    copy = torch.empty_like(x, dtype=to, memory_format=layout)
    assert copy_finite(x, copy) and torch.equal(copy, x.to(to))
    for wrong in (float("nan"), float("-inf")):
        y = x.clone()
        y[4, 6, 32, 40] = wrong
        assert not copy_finite(y, copy)
    assert copy_finite(x.bfloat16(), copy) and torch.equal(copy, x.bfloat16().to(to))
    large = torch.full_like(x, torch.finfo(torch.float32).max)
    assert copy_finite(large, copy) == (to == torch.float32)  # it is infinite in bfloat16
