import math

import pytest
import torch
from torch import Tensor

from rcnn.ops.boxes import MAX_LOG_SCALE, area, clip, covered, decode, encode, intersection, iou
from tests import tiny

OFFSETS = pytest.mark.parametrize("offset", [0.0, 1.0])


def one(*corners: float) -> Tensor:
    return torch.tensor([[corners]], dtype=torch.float32)


def same_box(found: Tensor, *corners: float) -> bool:
    return torch.allclose(found, torch.tensor(corners, dtype=torch.float32), atol=1e-5)


@OFFSETS
def test_definition_of_area_by_counting_pixels(offset: float) -> None:
    # an inclusive box (2, 3, 5, 4) covers columns 2..5 and rows 3..4; a continuous one is 3 wide and 1 high
    assert area(torch.tensor([2.0, 3.0, 5.0, 4.0]), offset=offset).item() == (8 if offset else 3)


@OFFSETS
def test_an_inside_out_box_has_no_area(offset: float) -> None:
    assert area(torch.tensor([[9.0, 0.0, 2.0, 5.0], [0.0, 9.0, 5.0, 2.0]]), offset=offset).tolist() == [0, 0]


def test_definition_of_iou_by_counting_pixels() -> None:
    a, b = one(0, 0, 3, 3), one(2, 2, 5, 5)
    assert intersection(a, b, offset=1).item() == 4
    assert iou(a, b, offset=1).item() == pytest.approx(4 / 28)
    assert iou(a, b, offset=0).item() == pytest.approx(1 / 17)
    assert covered(one(0, 0, 3, 1), b, offset=0).item() == 0
    assert covered(one(2, 2, 3, 3), b, offset=1).item() == 1


def test_touching_boxes_share_pixels_only_where_corners_are_inclusive() -> None:
    a, b = one(0, 0, 4, 4), one(4, 0, 8, 4)
    assert iou(a, b, offset=0).item() == 0
    assert iou(a, b, offset=1).item() == pytest.approx(5 / 45)


def test_empty_boxes_have_iou_0_and_not_nan() -> None:
    empty = one(3, 3, 3, 3)
    assert iou(empty, empty, offset=0).item() == 0
    assert covered(empty, one(0, 0, 9, 9), offset=0).item() == 0


@OFFSETS
def test_iou_is_symmetric_within_0_and_1_and_1_with_itself(offset: float) -> None:
    a, b = tiny.boxes(1, 20)[None], tiny.boxes(2, 30)[None]
    overlaps = iou(a, b, offset=offset)
    assert overlaps.shape == (1, 20, 30)
    assert torch.equal(overlaps, iou(b, a, offset=offset).transpose(1, 2))
    assert overlaps.min() >= 0 and overlaps.max() < 1
    assert torch.allclose(iou(a, a, offset=offset)[0].diagonal(), torch.ones(20))


@OFFSETS
def test_iou_of_images_does_not_mix_them(offset: float) -> None:
    a, b = tiny.boxes(1, 12).view(3, 4, 4), tiny.boxes(2, 15).view(3, 5, 4)
    for i in range(3):
        assert torch.equal(iou(a, b, offset=offset)[i], iou(a[i : i + 1], b[i : i + 1], offset=offset)[0])


def test_definition_of_clip_for_pictures_of_different_size() -> None:
    boxes = torch.tensor([[[-5.0, -2.0, 50.0, 60.0]], [[3.0, 4.0, 50.0, 60.0]]])
    size = torch.tensor([[20, 30], [100, 40]])
    assert clip(boxes, size, offset=1.0).tolist() == [[[0, 0, 29, 19]], [[3, 4, 39, 60]]]
    assert clip(boxes, size, offset=0.0).tolist() == [[[0, 0, 30, 20]], [[3, 4, 40, 60]]]


def test_clip_takes_any_number_of_axes_between_image_and_corner() -> None:
    boxes, size = torch.randn(2, 3, 5, 4) * 50, torch.tensor([[20, 30], [10, 40]])
    flat = clip(boxes.view(2, 15, 4), size, offset=1.0)
    assert torch.equal(clip(boxes, size, offset=1.0).view(2, 15, 4), flat)
    assert torch.equal(clip(flat, size, offset=1.0), flat)


def test_definition_of_encode() -> None:
    # continuous: a box 10 x 20 about (5, 10) to one 20 x 20 about (15, 10)
    deltas = encode(torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([5.0, 0.0, 25.0, 20.0]), offset=0)
    assert same_box(deltas, 1.0, 0.0, math.log(2), 0.0)
    # inclusive: widths are 11 and 21, centres (5, 10) and (15, 10)
    deltas = encode(torch.tensor([0.0, 0.0, 10.0, 20.0]), torch.tensor([5.0, 0.0, 25.0, 20.0]), offset=1)
    assert same_box(deltas, 10 / 11, 0.0, math.log(21 / 11), 0.0)


@OFFSETS
def test_decode_undoes_encode(offset: float) -> None:
    source, target = tiny.boxes(3, 100), tiny.boxes(4, 100)
    found = decode(source, encode(source, target, offset=offset), offset=offset)
    assert torch.allclose(found, target, atol=1e-3)


@OFFSETS
def test_no_deltas_change_nothing_and_regression_moves_with_the_boxes(offset: float) -> None:
    source, target = tiny.boxes(3, 20), tiny.boxes(4, 20)
    assert torch.allclose(decode(source, torch.zeros(20, 4), offset=offset), source, atol=1e-5)
    moved = encode(source + 100, target + 100, offset=offset)
    assert torch.allclose(moved, encode(source, target, offset=offset), atol=1e-4)


def test_growth_is_limited_so_that_boxes_stay_finite() -> None:
    box = torch.tensor([0.0, 0.0, 16.0, 16.0])
    assert same_box(decode(box, torch.tensor([0.0, 0.0, 500.0, MAX_LOG_SCALE]), offset=0), -492, -492, 508, 508)


@OFFSETS
def test_encode_of_padding_is_finite(offset: float) -> None:
    none, box = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 30.0, 40.0]])
    for source, target in ((none, none), (none, box), (box, none)):
        assert encode(source, target, offset=offset).isfinite().all()


def test_what_is_added_beyond_moves_the_far_corner_alone() -> None:
    box, delta = torch.tensor([[10.0, 20.0, 29.0, 59.0]]), torch.tensor([[0.1, 0.0, 0.0, 0.2]])
    plain, moved = decode(box, delta, offset=1.0), decode(box, delta, offset=1.0, beyond=1.0)
    assert torch.equal(moved - plain, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
