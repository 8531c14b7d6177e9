import pytest
import torch
from torch import Tensor

from rcnn.ops import kernels as loader
from rcnn.ops import roi
from rcnn.ops.roi import roi_align, roi_pool
from tests.ops.conftest import implementations, interpreted

ALIGN = [  # sampling ratio, aligned
    (0, True),
    (0, False),
    (2, True),
    (3, False),
]
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}


def random_boxes(images: int, count: int, seed: int) -> Tensor:
    """Boxes of all sizes on a 160 x 240 canvas, some beyond its edges, inside out, empty, enormous or not finite."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.rand(images, count, 2, generator=draw) * torch.tensor([240.0, 160.0])
    size = torch.exp(torch.rand(images, count, 2, generator=draw) * 5.5)
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=2)
    odd = [[0, 0, 0, 0], [90, 70, 20, 10], [-900, -900, -700, -700], [-5e3, -5e3, 5e3, 5e3], [0, 0, 239, 159]]
    odd += [[float("nan"), 3, 50, 60], [3, 3, float("inf"), 60]]
    boxes[:, : len(odd)] = torch.tensor(odd)
    return boxes


def affordable(kernels: str, count: int, size: int) -> tuple[int, int]:
    """Boxes of an image and bins of a side, fewer for Triton's interpreter."""
    return (8, 2) if interpreted(kernels) else (count, size)


def random_features(images: int, channels: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A stride-16 map of the same canvas, with the equal values that rectified features have."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, 10, 15, generator=draw).relu().to(dtype)


def ramp() -> Tensor:
    """Two channels: the column and the row of each cell of a (6, 8) map."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    return torch.stack([columns, rows])[None]


# --- definition


def test_pool_takes_the_maximum_of_rounded_bins(kernels: str) -> None:
    features = torch.arange(48.0).view(1, 1, 6, 8)
    box = torch.tensor([[[17.0, 0.0, 70.0, 40.0]]])  # columns 1..4 and rows 0..3: both rounded corners belong to it
    assert roi_pool(features, box, output_size=2, spatial_scale=1 / 16).tolist() == [[[[10, 12], [26, 28]]]]


def test_pool_rounds_halves_away_from_zero_and_overlaps_bins(kernels: str) -> None:
    box = torch.tensor([[[8.0, 8.0, 40.0, 40.0]]])  # corners .5 and 2.5 become 1 and 3; 3 cells in 2 bins share one
    pooled = roi_pool(ramp(), box, output_size=2, spatial_scale=1 / 16)
    assert pooled[0, 0].tolist() == [[2, 3], [2, 3]]
    assert roi_pool(-ramp(), box, output_size=2, spatial_scale=1 / 16)[0, 0].tolist() == [[-1, -2], [-1, -2]]


def test_pool_is_zero_in_bins_outside_the_map(kernels: str) -> None:
    box = torch.tensor([[[96.0, 0.0, 159.0, 15.0]]])  # columns 6..9 of 8
    pooled = roi_pool(ramp() + 1, box, output_size=2, spatial_scale=1 / 16)
    assert pooled[0, 0].tolist() == [[8, 0], [8, 0]]


def test_pool_gradient_goes_to_the_first_maximum(kernels: str) -> None:
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    box = torch.tensor([[[0.0, 0.0, 3.0, 3.0]]])
    roi_pool(features, box, output_size=1, spatial_scale=1.0).backward(torch.full((1, 1, 1, 1), 5.0))
    assert features.grad is not None
    assert features.grad[0, 0, 0, 0] == 5
    assert features.grad.sum() == 5


def test_align_interpolates_at_the_centres_of_bins(kernels: str) -> None:
    box = torch.tensor([[[32.0, 16.0, 64.0, 48.0]]])
    settings = {"output_size": 2, "spatial_scale": 1 / 16, "sampling_ratio": 1}
    half_off = roi_align(ramp(), box, aligned=False, **settings)
    exact = roi_align(ramp(), box, aligned=True, **settings)
    torch.testing.assert_close(half_off[0, 0], torch.tensor([[2.5, 3.5], [2.5, 3.5]]))
    torch.testing.assert_close(exact[0, 0], torch.tensor([[2.0, 3.0], [2.0, 3.0]]))
    torch.testing.assert_close(exact[0, 1], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


def test_align_takes_a_cell_at_least_unless_aligned(kernels: str) -> None:
    point = torch.tensor([[[32.0, 32.0, 32.0, 32.0]]])
    settings = {"output_size": 1, "spatial_scale": 1 / 16, "sampling_ratio": 2}
    assert roi_align(ramp(), point, aligned=False, **settings).flatten().tolist() == [2.5, 2.5]
    assert roi_align(ramp(), point, aligned=True, **settings).flatten().tolist() == [1.5, 1.5]


def test_align_counts_samples_outside_the_map_as_zero(kernels: str) -> None:
    ones = torch.ones(1, 1, 4, 4)
    box = torch.tensor([[[0.0, 0.0, 8.0, 4.0]]])  # samples at columns 0 .. 7; beyond column 4 they are 0
    pooled = roi_align(ones, box, output_size=1, spatial_scale=1.0, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(pooled, torch.full((1, 1, 1, 1), 5 / 8))


def test_says_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"roi_pool: .* output_size 0: give .* output_size of at least 1"):
        roi_pool(torch.zeros(2, 2, 3, 3), torch.zeros(2, 3, 4), output_size=0, spatial_scale=1.0)


# --- property


@pytest.mark.parametrize(("ratio", "aligned"), ALIGN)
def test_align_backward_is_the_transpose_of_forward(kernels: str, ratio: int, aligned: bool) -> None:
    features = random_features(2, 20, torch.float32).requires_grad_()
    count, size = affordable(kernels, 30, 5)
    boxes = random_boxes(2, count, 1)
    out = roi_align(features, boxes, output_size=size, spatial_scale=1 / 16, sampling_ratio=ratio, aligned=aligned)
    weights = torch.randn(out.shape)
    (grad,) = torch.autograd.grad(out, features, weights)
    torch.testing.assert_close((grad * features).sum(), (out * weights).sum(), rtol=1e-4, atol=1e-3)


def test_pool_gradient_is_what_came_out_of_full_bins(kernels: str) -> None:
    features = (random_features(2, 20, torch.float32) + 1).requires_grad_()
    count, size = affordable(kernels, 30, 7)
    out = roi_pool(features, random_boxes(2, count, 2), output_size=size, spatial_scale=1 / 16)
    weights = torch.randn(out.shape)
    (grad,) = torch.autograd.grad(out, features, weights)
    torch.testing.assert_close(grad.sum(), (weights * (out > 0)).sum(), rtol=1e-4, atol=1e-3)


def test_moving_box_and_features_together_changes_nothing(kernels: str) -> None:
    features = torch.randn(1, 16, 12, 12)
    boxes = torch.tensor([[[40.0, 50.0, 100.0, 90.0]]])
    moved = features.roll((1, 2), dims=(2, 3))
    there = boxes + torch.tensor([32.0, 16.0, 32.0, 16.0])
    align = {"output_size": 3, "spatial_scale": 1 / 16, "sampling_ratio": 2, "aligned": True}
    torch.testing.assert_close(roi_align(features, boxes, **align), roi_align(moved, there, **align))
    pool = {"output_size": 3, "spatial_scale": 1 / 16}
    assert torch.equal(roi_pool(features, boxes, **pool), roi_pool(moved, there, **pool))


def test_results_are_channels_last_of_the_features_type(kernels: str) -> None:
    count, size = affordable(kernels, 10, 7)
    features, boxes = random_features(2, 24, torch.bfloat16), random_boxes(2, count, 3)
    pooled = roi_pool(features, boxes, output_size=size, spatial_scale=1 / 16)
    aligned = roi_align(features, boxes, output_size=size, spatial_scale=1 / 16, sampling_ratio=2, aligned=True)
    for out in (pooled, aligned):
        assert out.shape == (2 * count, 24, size, size)
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernels", [name for name in implementations() if name != "triton"], indirect=True)
def test_gradients_do_not_depend_on_the_number_of_threads(kernels: str) -> None:
    boxes, before = random_boxes(3, 40, 4), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([grad for _, grad in run_all(random_features(3, 150, torch.float32), boxes, 7)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_own_threads_do_as_those_of_pytorch() -> None:
    native = pytest.importorskip("rcnn.ops.kernels.native._native", reason="the compiled kernels are not built")
    features, boxes, before = random_features(3, 150, torch.float32), random_boxes(3, 40, 4), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        lent = run_all(features, boxes, 7)
        native.use_team(0)
        own = run_all(features, boxes, 7)
    finally:
        native.use_team(loader._torch_team())
        torch.set_num_threads(before)
    for pair, other in zip(lent, own, strict=True):
        assert all(map(torch.equal, pair, other))


def test_no_boxes_give_no_rows_and_a_zero_gradient(kernels: str) -> None:
    features = random_features(2, 8, torch.float32).requires_grad_()
    for pool in (roi_pool, roi_align):
        more = {"sampling_ratio": 0, "aligned": True} if pool is roi_align else {}
        out = pool(features, torch.zeros(2, 0, 4), output_size=7, spatial_scale=1 / 16, **more)
        assert out.shape == (0, 8, 7, 7)
        (grad,) = torch.autograd.grad(out.sum(), features)
        assert torch.equal(grad, torch.zeros_like(features))


# --- agreement


def run_all(features: Tensor, boxes: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Result and gradient of RoIPool and of RoIAlign in each of its manners."""
    features = features.detach().requires_grad_()
    outs = [roi_pool(features, boxes, output_size=size, spatial_scale=1 / 16)]
    for ratio, aligned in ALIGN:
        settings = {"sampling_ratio": ratio, "aligned": aligned}
        outs.append(roi_align(features, boxes, output_size=size, spatial_scale=1 / 16, **settings))
    draw = torch.Generator().manual_seed(5)
    weights = torch.randn(outs[0].shape, generator=draw).to(features.dtype)
    return [(out.detach(), torch.autograd.grad(out, features, weights)[0]) for out in outs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 83, 128])
def test_all_implementations_agree(
    kernels: str, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, size = affordable(kernels, 40, 7)
    features, boxes = random_features(2, channels, dtype), random_boxes(2, count, channels)
    if interpreted(kernels):
        features, boxes = features[:1], boxes[:1]
    got = run_all(features, boxes, size)
    monkeypatch.setenv("RCNN_KERNELS", "reference")
    expected = run_all(features, boxes, size)
    for (out, grad), (expected_out, expected_grad) in zip(got, expected, strict=True):
        assert out.isfinite().all()
        torch.testing.assert_close(out, expected_out, **TOLERANCE[dtype])
        torch.testing.assert_close(grad, expected_grad, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_a_fixed_order_agree(kernels: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes = random_features(2, 5, dtype)[:, :, :4, :5], random_boxes(2, 9, 9)[:, 4:]
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        results += [run_all(features, boxes, 2)]
        monkeypatch.setenv("RCNN_KERNELS", "reference")
        results += [run_all(features, boxes, 2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for (out, grad), (expected, expected_grad) in zip(*results, strict=True):
        assert grad[0].any() and grad[1].any()
        torch.testing.assert_close(out, expected, **TOLERANCE[dtype])
        torch.testing.assert_close(grad, expected_grad, **TOLERANCE[dtype])


def test_layout_of_features_and_gradients_does_not_matter(kernels: str, same_bits: None) -> None:
    count, size = affordable(kernels, 20, 7)
    images = 1 if interpreted(kernels) else 2
    features, boxes = random_features(images, 40, torch.float32), random_boxes(images, count, 6)
    rows = run_all(features, boxes, size)
    channels_last = run_all(features.contiguous(memory_format=torch.channels_last), boxes, size)
    for pair, other in zip(rows, channels_last, strict=True):
        assert all(map(torch.equal, pair, other))


def test_a_map_too_large_for_small_indices_pools_the_same(kernels: str) -> None:
    features = torch.randn(1, 8, 200, 200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    boxes = torch.tensor([[[160.0, 150.0, 199.0, 199.0], [150.0, 190.0, 190.0, 199.0]]])
    out = roi_pool(features, boxes, output_size=3, spatial_scale=1.0)
    expected, where = roi.roi_pool_reference(features.detach(), boxes, 3, 1.0)
    assert where.dtype == torch.int32
    assert torch.equal(out, expected)
    (grad,) = torch.autograd.grad(out, features, torch.ones_like(out))
    assert torch.equal(grad, roi.roi_pool_backward_reference(torch.ones_like(out), where, 1, 200, 200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [name for name in implementations() if name != "triton"], indirect=True)
def test_a_map_larger_than_the_cache_pools_the_same(kernels: str, dtype: torch.dtype) -> None:
    draw, count, size = torch.Generator().manual_seed(0), 16, 2
    features = torch.randn(2, 70, 72, 80, generator=draw).relu().to(dtype).requires_grad_()
    boxes = random_boxes(2, count, 0)  # bins of a few cells, and of thousands
    out, where = roi._roi_pool(features, boxes, size, 0.5)
    expected, expected_where = roi.roi_pool_reference(features.detach(), boxes, size, 0.5)
    assert torch.equal(out, expected)
    assert torch.equal(where, expected_where)
    assert torch.equal(roi_pool(features.detach(), boxes, output_size=size, spatial_scale=0.5), expected)
    grad = torch.randn(out.shape, generator=draw).to(dtype)
    got, wanted = torch.autograd.grad(out, features, grad)[0], roi.roi_pool_backward_reference(grad, where, 2, 72, 80)
    torch.testing.assert_close(got, wanted, **TOLERANCE[dtype])


def test_other_types_use_the_reference(kernels: str) -> None:
    features, boxes = random_features(1, 6, torch.float64), random_boxes(1, 20, 7)
    out = roi_align(features, boxes, output_size=2, spatial_scale=1 / 16, sampling_ratio=2, aligned=True)
    single = roi_align(features.float(), boxes, output_size=2, spatial_scale=1 / 16, sampling_ratio=2, aligned=True)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), single)


# --- the operators


def both(features: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """RoIPool and RoIAlign of a rectified map."""
    features = features.relu()
    pooled = roi_pool(features, boxes, output_size=size, spatial_scale=1 / 16)
    return pooled, roi_align(features, boxes, output_size=size, spatial_scale=1 / 16, sampling_ratio=0, aligned=True)


@pytest.mark.compile
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_is_one_node_for_torch_compile(kernels: str, same_bits: None, layout: torch.memory_format) -> None:
    torch._dynamo.reset()
    count, size = affordable(kernels, 12, 7)
    boxes, compiled = random_boxes(2, count, 8), torch.compile(both, fullgraph=True, backend="aot_eager")
    results = []
    for function in (both, compiled):
        features = torch.randn(2, 16, 10, 15, generator=torch.Generator().manual_seed(1)).contiguous(
            memory_format=layout
        )
        outs = function(features.requires_grad_(), boxes, size)
        results.append([*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), features)])
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
        assert eager.stride() == traced.stride()


@pytest.mark.compile
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_well_formed(kernels: str, dtype: torch.dtype) -> None:
    count, size = (2, 1) if interpreted(kernels) else (12, 7)
    features, boxes = random_features(2, 16, dtype).requires_grad_(), random_boxes(2, 12, 8)[:, -count:]
    argmax = roi._roi_pool(features, boxes, size, 0.0625)[1]
    grad, tolerance = torch.randn(argmax.shape).to(dtype), {"rtol": 1e-2, "atol": 1e-2}
    torch.library.opcheck(roi._roi_align, (features, boxes, size, 0.0625, 0, True), **tolerance)
    torch.library.opcheck(roi._roi_align, (features, boxes, size, 0.0625, 2, False), **tolerance)
    torch.library.opcheck(roi._roi_pool, (features, boxes, size, 0.0625), **tolerance)
    torch.library.opcheck(roi._roi_pool_inference, (features.detach(), boxes, size, 0.0625))
    torch.library.opcheck(roi._roi_align_backward, (grad, boxes, 10, 15, 0.0625, 2, False), **tolerance)
    torch.library.opcheck(roi._roi_pool_backward, (grad, boxes, argmax, 10, 15, 0.0625))
