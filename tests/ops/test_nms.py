import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor

from rcnn.ops import boxes as geometry
from rcnn.ops import has_kernels
from rcnn.ops import kernels as kernel_loader
from rcnn.ops.nms import _nms, nms, nms_reference
from tests.ops.conftest import interpreted


def affordable(kernels: str, images: int, count: int) -> tuple[int, int]:
    """Images and boxes, fewer for Triton's interpreter."""
    return (min(images, 5), min(count, 200)) if interpreted(kernels) else (images, count)


def one_image(rows: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and validity of rows x1 y1 x2 y2 score."""
    table = torch.tensor([rows])
    return table[..., :4].contiguous(), table[..., 4].contiguous(), torch.ones(1, len(rows), dtype=torch.bool)


def random_problem(images: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes around 25 objects, and some that are small, empty or inside out; some invalid; many equal scores."""
    draw = torch.Generator().manual_seed(seed)
    objects = torch.rand(images, 25, 2, generator=draw) * 700, torch.rand(images, 25, 2, generator=draw).exp() * 80
    chosen = torch.randint(25, (images, count, 1), generator=draw).expand(-1, -1, 2)
    centre, size = (x.gather(1, chosen) * (1 + 0.1 * torch.randn(images, count, 2, generator=draw)) for x in objects)
    size[:, ::10] = size[:, ::10] * 0.05 - 3
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=2)
    scores = (torch.rand(images, count, generator=draw) * 500).round() / 500 - 0.3
    return boxes, scores, torch.rand(images, count, generator=draw) > 0.1


# --- definition


def test_keeps_the_best_of_two_that_overlap(kernels: str) -> None:
    problem = one_image([[0, 0, 10, 10, 0.5], [0, 1, 10, 11, 0.9], [50, 50, 60, 60, 0.1]])
    index, kept = nms(*problem, iou_threshold=0.5, k=4, offset=0.0)
    assert index.tolist() == [[1, 2, 0, 0]]
    assert kept.tolist() == [[True, True, False, False]]


def test_a_suppressed_box_suppresses_nothing(kernels: str) -> None:
    chain = one_image([[0, 0, 10, 10, 0.9], [0, 4, 10, 14, 0.8], [0, 8, 10, 18, 0.7]])
    index, kept = nms(*chain, iou_threshold=0.4, k=3, offset=0.0)
    assert index[kept].tolist() == [0, 2]


def test_an_overlap_equal_to_the_threshold_stays(kernels: str) -> None:
    half = one_image([[0, 0, 10, 10, 0.9], [0, 0, 10, 5, 0.8]])
    assert nms(*half, iou_threshold=0.5, k=2, offset=0.0)[1].sum() == 2
    assert nms(*half, iou_threshold=0.49, k=2, offset=0.0)[1].sum() == 1


def test_offset_makes_corners_inclusive(kernels: str) -> None:
    touching = one_image([[0, 0, 1, 1, 0.9], [1, 0, 2, 1, 0.8]])  # inclusive: 2 of 6 pixels shared
    assert nms(*touching, iou_threshold=0.3, k=2, offset=0.0)[1].sum() == 2
    assert nms(*touching, iou_threshold=0.3, k=2, offset=1.0)[1].sum() == 1


def test_ties_go_to_the_lower_index(kernels: str) -> None:
    apart = one_image([[0, 0, 1, 1, 0.0], [5, 5, 6, 6, -0.0], [9, 9, 10, 10, 0.5], [20, 20, 21, 21, 0.0]])
    assert nms(*apart, iou_threshold=0.5, k=4, offset=1.0)[0].tolist() == [[2, 0, 1, 3]]


def test_stops_when_the_slots_are_full(kernels: str) -> None:
    apart = one_image([[20 * i, 0, 20 * i + 10, 10, 0.1 * i] for i in range(8)])
    index, kept = nms(*apart, iou_threshold=0.5, k=3, offset=0.0)
    assert index.tolist() == [[7, 6, 5]]
    assert kept.all()


def test_invalid_boxes_and_nan_scores_take_no_part(kernels: str) -> None:
    boxes, scores, valid = one_image([[0, 0, 10, 10, 0.9], [0, 0, 10, 10, float("nan")], [0, 0, 10, 10, 0.1]])
    valid[0, 0] = False
    index, kept = nms(boxes, scores, valid, iou_threshold=0.5, k=2, offset=0.0)
    assert index.tolist() == [[2, 0]]
    assert kept.tolist() == [[True, False]]


def test_boxes_that_are_not_finite_neither_suppress_nor_vanish(kernels: str) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[nan, 0, 9, 9, 0.9], [-inf, -inf, inf, inf, 0.8], [0, 0, inf, 9, 0.7], [0, 0, 9, 9, 0.6], [0, 0, 9, 9, 0.5]]
    index, kept = nms(*one_image(rows), iou_threshold=0.5, k=5, offset=1.0)
    assert index[kept].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 1])
def test_few_or_no_boxes(kernels: str, count: int) -> None:
    boxes, scores = torch.zeros(2, count, 4), torch.zeros(2, count)
    index, kept = nms(boxes, scores, torch.ones(2, count, dtype=torch.bool), iou_threshold=0.5, k=3, offset=1.0)
    assert index.tolist() == [[0, 0, 0]] * 2
    assert kept.sum(dim=1).tolist() == [count] * 2


@pytest.mark.parametrize(("threshold", "k", "named"), [(1.5, 10, "iou_threshold is 1.5"), (0.5, 0, "k is 0")])
def test_says_what_it_refuses(threshold: float, k: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        nms(*one_image([[0, 0, 1, 1, 0.5]]), iou_threshold=threshold, k=k, offset=0.0)


# --- property


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_kept_boxes_are_apart_and_the_others_have_a_better_neighbour(kernels: str, threshold: float) -> None:
    boxes, scores, valid = random_problem(*affordable(kernels, 1, 400), seed=3)
    index, kept = nms(boxes, scores, valid, iou_threshold=threshold, k=400, offset=1.0)
    chosen = index[kept]
    near = geometry.iou(boxes, boxes, offset=1.0)[0] > threshold
    assert near[chosen][:, chosen].fill_diagonal_(False).sum() == 0
    better = scores[0][chosen][:, None] >= scores[0]
    left_out = valid[0].clone()
    left_out[chosen] = False
    assert left_out.sum() > 20
    assert (near[chosen] & better).any(dim=0)[left_out].all()


def test_fewer_slots_keep_the_first_of_more(kernels: str) -> None:
    problem = random_problem(3, 300, seed=4)
    many, _ = nms(*problem, iou_threshold=0.5, k=100, offset=0.0)
    few, _ = nms(*problem, iou_threshold=0.5, k=20, offset=0.0)
    assert torch.equal(few, many[:, :20])


# --- agreement


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("images", "count", "k"), [(1, 3000, 600), (1, 700, 700), (5, 257, 100), (40, 60, 20)])
def test_all_implementations_agree(kernels: str, images: int, count: int, k: int, threshold: float) -> None:
    problem = random_problem(*affordable(kernels, images, count), seed=count)
    for offset in (0.0, 1.0):
        index, kept = nms(*problem, iou_threshold=threshold, k=k, offset=offset)
        expected_index, expected_kept = nms_reference(*problem, iou_threshold=threshold, k=k, offset=offset)
        assert torch.equal(index, expected_index)
        assert torch.equal(kept, expected_kept)


def test_agrees_far_from_the_origin_and_on_strided_input(kernels: str) -> None:
    boxes, scores, valid = random_problem(*affordable(kernels, 2, 800), seed=9)
    boxes = (boxes * 0.05 + 2e5).transpose(0, 1).contiguous().transpose(0, 1)
    got = nms(boxes, scores, valid, iou_threshold=0.6, k=500, offset=0.0)
    assert all(map(torch.equal, got, nms_reference(boxes, scores, valid, iou_threshold=0.6, k=500, offset=0.0)))


# --- the operator


@pytest.mark.compile
def test_is_one_node_for_torch_compile(kernels: str) -> None:
    problem = random_problem(2, 50, seed=1)
    compiled = torch.compile(
        lambda *x: nms(*x, iou_threshold=0.5, k=10, offset=1.0), fullgraph=True, backend="aot_eager"
    )
    assert all(map(torch.equal, compiled(*problem), nms(*problem, iou_threshold=0.5, k=10, offset=1.0)))


@pytest.mark.compile
def test_operator_is_well_formed(kernels: str) -> None:
    torch.library.opcheck(_nms, (*random_problem(2, 50, seed=1), 0.5, 10, 1.0))


@pytest.mark.parametrize(
    ("chosen", "absent", "said"),
    [
        ("", kernel_loader.NATIVE, r"10 to 100 times slower.*reinstall rcnn"),
        ("triton", kernel_loader.TRITON, r"many times slower.*pip install triton"),
    ],
)
def test_without_fast_kernels_it_warns_once_and_works(
    monkeypatch: pytest.MonkeyPatch, chosen: str, absent: str, said: str
) -> None:
    monkeypatch.setenv("RCNN_KERNELS", chosen)
    monkeypatch.setitem(sys.modules, absent, None)
    kernel_loader._load.cache_clear()
    problem = one_image([[0, 0, 10, 10, 0.5], [0, 1, 10, 11, 0.9]])
    try:
        with pytest.warns(RuntimeWarning, match=said):
            assert nms(*problem, iou_threshold=0.5, k=1, offset=0.0)[0].tolist() == [[1]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nms(*problem, iou_threshold=0.5, k=1, offset=0.0)
            assert not has_kernels(torch.device("cpu"))
    finally:
        kernel_loader._load.cache_clear()


IN_A_FRESH_PROCESS = """
import sys
import torch
from rcnn.ops.nms import nms
from rcnn.ops.roi import roi_align, roi_pool

boxes, features = torch.tensor([[[0.0, 0, 9, 9], [1, 1, 8, 8]]]), torch.rand(1, 4, 8, 8)
nms(boxes, torch.rand(1, 2), torch.ones(1, 2, dtype=torch.bool), iou_threshold=0.5, k=1, offset=1.0)
roi_pool(features, boxes, output_size=2, spatial_scale=0.5)
roi_align(features, boxes, output_size=2, spatial_scale=0.5, sampling_ratio=2, aligned=True)
assert "torch._dynamo" not in sys.modules
"""


def test_operators_of_inference_do_not_load_the_compiler() -> None:
    """It takes a second, which is most of the time from a cold start to boxes."""
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], check=True)
