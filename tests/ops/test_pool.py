import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops.pool import max_pool

CASES = [  # window, stride, padding
    (2, 2, 0),
    (3, 2, 1),
    (3, 1, 1),
    (5, 3, 2),
    (2, 3, 0),
]


def random_map(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """A map in channels-last layout of few different values, so that most windows have equal ones."""
    draw = torch.Generator().manual_seed(channels)
    x = torch.randint(-3, 3, (2, channels, height, width), generator=draw) / 2
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def with_gradient(pool, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of integers so small that every order of additions gives the same sum."""
    leaf = x.detach().requires_grad_()
    out = pool(leaf)
    weights = torch.randint(-4, 5, out.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return out.detach(), torch.autograd.grad(out, leaf, weights)[0]


# --- definition


def test_takes_the_largest_of_each_window_and_leaves_out_what_fills_none(kernels: str) -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    assert max_pool(x, 2, stride=2).tolist() == [[[[6, 8]]]]
    assert max_pool(x, 3, stride=2, padding=1).tolist() == [[[[6, 8, 9], [11, 13, 14]]]]


def test_gradient_goes_to_the_first_of_equal_values(kernels: str) -> None:
    x = torch.zeros(1, 16, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    max_pool(x, 2, stride=2).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[1, 0], [0, 0]]


# --- agreement with PyTorch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "stride", "padding"), CASES)
@pytest.mark.parametrize(("channels", "height", "width"), [(64, 7, 10), (83, 5, 6), (3, 6, 5)])
def test_is_pytorchs_bit_for_bit(
    kernels: str, channels: int, height: int, width: int, window: int, stride: int, padding: int, dtype: torch.dtype
) -> None:
    x = random_map(channels, height, width, dtype)
    got = with_gradient(lambda leaf: max_pool(leaf, window, stride=stride, padding=padding), x)
    expected = with_gradient(lambda leaf: F.max_pool2d(leaf, window, stride, padding), x)
    assert all(map(torch.equal, got, expected))
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(max_pool(x, window, stride=stride, padding=padding), expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_pool_as_pytorchs(kernels: str, dtype: torch.dtype) -> None:
    x = random_map(83, 8, 9, dtype)
    for place, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[torch.rand(x.shape, generator=torch.Generator().manual_seed(place)) < 0.4] = value
    got = with_gradient(lambda leaf: max_pool(leaf, 2, stride=2), x)
    expected = with_gradient(lambda leaf: F.max_pool2d(leaf, 2, 2), x)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.isnan().any() or mine is got[1]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_windows_that_share_cells_sum_in_float32(kernels: str) -> None:
    x = random_map(64, 9, 12, torch.bfloat16)
    grad = torch.randn(2, 64, 5, 6, generator=torch.Generator().manual_seed(2)).bfloat16()
    results = []
    for leaf, weights in ((x.detach(), grad), (x.float(), grad.float())):
        out = max_pool(leaf.requires_grad_(), 3, stride=2, padding=1)
        results.append(torch.autograd.grad(out, leaf, weights)[0].bfloat16())
    if kernels in ("reference", "triton"):  # PyTorch rounds after each addition
        torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
    else:
        assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_and_layouts_are_pytorchs(kernels: str, dtype: torch.dtype) -> None:
    x = random_map(16, 6, 6, torch.float32)
    assert torch.equal(max_pool(x.to(dtype), 2, stride=2), F.max_pool2d(x.to(dtype), 2, 2))
    assert torch.equal(max_pool(x.contiguous(), 2, stride=2), F.max_pool2d(x, 2, 2))


# --- refusals


def test_says_what_it_refuses(kernels: str) -> None:
    x = random_map(16, 3, 3, torch.float32)
    with pytest.raises(RuntimeError, match="too small"):
        max_pool(x, 5, stride=2)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        max_pool(x, 2, stride=2, padding=2)


@pytest.mark.compile
def test_is_pytorchs_operator_for_torch_compile(kernels: str) -> None:
    torch._dynamo.reset()
    x, seen = random_map(16, 6, 7, torch.float32), []

    def look(graph: torch.fx.GraphModule, _: object):
        seen.extend(node.name for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(lambda y: max_pool(y, 2, stride=2), fullgraph=True, backend=look)
    assert torch.equal(compiled(x), max_pool(x, 2, stride=2))
    assert any("max_pool2d" in name for name in seen), seen


@pytest.mark.parametrize(("window", "stride", "padding"), CASES)
def test_of_bytes(window: int, stride: int, padding: int) -> None:
    x = torch.randint(0, 256, (2, 20, 13, 12), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    got = max_pool(x, window, stride=stride, padding=padding)
    assert got.dtype == torch.uint8
    assert torch.equal(got.float(), F.max_pool2d(x.float(), window, stride, padding))
