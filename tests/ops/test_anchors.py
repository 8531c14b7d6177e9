import numpy as np
import pytest
import torch

from rcnn.ops.anchors import base_anchors, cells_on_image, grid_anchors, inside_image

# py-faster-rcnn, generate_anchors.py: the nine anchors in its own comment
NINE = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]


def test_definition_of_the_nine_anchors() -> None:
    # the comment there counts from 1, the code from 0
    expected = torch.tensor(NINE) - torch.tensor([1, 1, 1, 1])
    assert torch.equal(base_anchors((8, 16, 32), (0.5, 1, 2), stride=16, offset=1.0), expected.float())


def test_exact_anchors_have_the_area_and_the_ratio_asked_for_and_share_a_centre() -> None:
    scales, ratios = (2, 4.5, 8), (0.5, 1, 3)
    anchors = base_anchors(scales, ratios, stride=8, offset=0.0).double()
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    expected = torch.tensor([(8 * scale) ** 2 for _ in ratios for scale in scales])
    assert torch.allclose(width * height, expected.double(), rtol=1e-5)
    assert torch.allclose(height / width, torch.tensor(ratios).double().repeat_interleave(3), rtol=1e-5)
    assert torch.allclose(anchors[:, :2] + anchors[:, 2:], torch.tensor(8.0).double(), atol=1e-4)


def test_definition_of_the_grid() -> None:
    base = torch.tensor([[0.0, 0.0, 1.0, 1.0], [-2.0, 0.0, 2.0, 4.0]])
    grid = grid_anchors(base, (2, 3), stride=10)
    assert grid.shape == (12, 4)
    for row in range(2):
        for column in range(3):
            shift = torch.tensor([column, row, column, row]) * 10.0
            start = (row * 3 + column) * 2
            assert torch.equal(grid[start : start + 2], base + shift)


@pytest.mark.parametrize(
    ("size", "whole", "partial"),
    [((64, 96), (4, 6), (4, 6)), ((63, 81), (3, 5), (4, 6)), ((16, 17), (1, 1), (1, 2)), ((15, 1), (0, 0), (1, 1))],
)
def test_definition_of_cells_on_the_picture(
    size: tuple[int, int], whole: tuple[int, int], partial: tuple[int, int]
) -> None:
    for cells, partly in ((whole, False), (partial, True)):
        found = cells_on_image(torch.tensor([size]), (4, 6), stride=16, num_anchors=2, partial=partly)
        expected = np.zeros((4, 6, 2), bool)
        expected[: cells[0], : cells[1]] = True
        assert found.view(4, 6, 2).numpy().tolist() == expected.tolist()


def test_cells_of_images_do_not_mix() -> None:
    size = torch.tensor([[64, 96], [20, 40]])
    found = cells_on_image(size, (4, 6), stride=16, num_anchors=3, partial=True)
    assert found.sum(1).tolist() == [4 * 6 * 3, 2 * 3 * 3]


def test_definition_of_inside() -> None:
    anchors = torch.tensor([[0, 0, 29, 19], [0, 0, 30, 19], [0, 0, 29, 20], [-1, 0, 5, 5], [0, -1, 5, 5]]).float()
    size = torch.tensor([[20, 30], [21, 31]])
    inclusive = inside_image(anchors, size, border=0, offset=1.0)
    assert inclusive.tolist() == [[True, False, False, False, False], [True, True, True, False, False]]
    assert inside_image(anchors, size, border=1, offset=1.0).all()
    assert inside_image(anchors, size, border=0, offset=0.0)[0].tolist() == [True, True, True, False, False]
