from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rcnn.data.loader import Loader
from rcnn.data.records import Record, RecordTable
from rcnn.evaluation.results import ImageDetections
from rcnn.inference.collect import _pack, _unpack, collect, collect_proposals, original_detections
from rcnn.inference.step import DetectStep, ProposeStep
from rcnn.structures import Canvas, Detections, Limits
from tests import tiny


def found_by(*boxes: tuple[float, ...], valid: int) -> Detections:
    """Detections of two images: nothing in the first, these boxes in the second, as many of them real."""
    rows = torch.zeros(2, len(boxes), 4)
    rows[1] = torch.tensor(boxes)
    scores = torch.linspace(0.9, 0.1, len(boxes)).expand(2, -1)
    real = (torch.arange(len(boxes)) < valid).expand(2, -1).clone()
    real[0] = False
    return Detections(rows, scores, torch.arange(1, len(boxes) + 1).expand(2, -1), real)


def test_definition_unpads_and_scales_back() -> None:
    detections = found_by((10, 20, 30, 40), (0, 0, 7, 9), (1, 1, 2, 2), valid=2)
    batch = tiny.batch()._replace(scale=torch.tensor([1.0, 0.5]))
    found = original_detections(detections, batch, 1, "x", (128, 192), offset=1.0)
    assert found.image_id == "x"
    assert found.boxes.tolist() == [[20, 40, 60, 80], [0, 0, 14, 18]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5]) and found.labels.tolist() == [1, 2]
    nothing = original_detections(detections, batch, 0, 7, (128, 192), offset=1.0)
    assert nothing.boxes.shape == (0, 4) and len(nothing.scores) == len(nothing.labels) == 0


@pytest.mark.parametrize(("offset", "limit"), [(0.0, [133, 101]), (1.0, [132, 100])])
def test_boxes_end_at_the_edge_of_the_original_picture(offset: float, limit: list[float]) -> None:
    detections = found_by((0, 0, 96, 64), (3, 3, 95.5, 63.8), valid=2)  # the picture takes 67 x 51 pixels at 0.5
    batch = tiny.batch()._replace(scale=torch.tensor([1.0, 0.5]))
    found = original_detections(detections, batch, 1, 0, (101, 133), offset=offset)
    assert found.boxes[:, 2:].tolist() == [limit, limit]
    assert found.boxes.dtype == np.float32


def pictures(folder: Path, sizes: list[tuple[int, int]]) -> RecordTable:
    """A set of random pictures without annotations."""
    records = []
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{i}.png"), pixels)
        none = np.zeros(0)
        records.append(
            Record(
                f"picture {i}", str(folder / f"{i}.png"), height, width,
                none.reshape(0, 4).astype(np.float32), none.astype(np.int64), none.astype(np.bool_),
                none.astype(np.float32), none.astype(np.bool_),
            )
        )  # fmt: skip
    return RecordTable.from_records(records, "pictures", ("a", "b", "c"))


def test_every_picture_comes_once_whatever_the_batch(tmp_path: Path) -> None:
    sizes = [(64, 96), (60, 90), (96, 64), (40, 80), (64, 64)]
    dataset = pictures(tmp_path, sizes)
    limits = Limits(1, (Canvas(64, 96), Canvas(96, 64)))
    step = DetectStep(tiny.detector(), device=torch.device("cpu"))
    results = []
    for batch in (1, 3):
        loader = Loader(
            dataset, limits, batch=batch, short=64, long=96, offset=1.0, flip="none", shuffle=False, seed=0, workers=0
        )
        results.append({found.image_id: found for found in collect(step, loader, dataset)})
        assert len(results[-1]) == len(list(collect(step, loader, dataset))) == 5
    alone, together = results
    assert set(alone) == set(together) == {f"picture {i}" for i in range(5)}
    for name, found in alone.items():
        height, width = sizes[int(name[-1])]
        assert len(found.boxes) and (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= [width - 1, height - 1]).all()
        assert np.allclose(found.scores, together[name].scores, atol=1e-4)


def test_proposals_of_every_picture_come_once_in_its_own_pixels(tmp_path: Path) -> None:
    sizes = [(128, 192), (60, 90), (96, 64)]
    dataset = pictures(tmp_path, sizes)
    limits = Limits(1, (Canvas(64, 96), Canvas(96, 64)))
    loader = Loader(
        dataset, limits, batch=2, short=64, long=96, offset=1.0, flip="none", shuffle=False, seed=0, workers=0
    )
    step = ProposeStep(tiny.detector(), tiny.PROPOSALS._replace(min_size=0), device=torch.device("cpu"))
    found = {regions.index: regions for regions in collect_proposals(step, loader, dataset)}
    assert set(found) == {0, 1, 2}
    for index, (height, width) in enumerate(sizes):
        boxes, scores = found[index].boxes, found[index].scores
        assert 0 < len(boxes) == len(scores) <= 24 and (np.diff(scores) <= 0).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= [width - 1, height - 1]).all()
        assert (boxes[:, 2:] + 1 > boxes[:, :2]).all()
    assert found[0].boxes.max() > 100  # twice the canvas


@pytest.mark.parametrize("names", [("a", "long name"), (7, 12), (7,)])
def test_what_is_sent_to_rank_0_comes_back(names: tuple[str | int, ...]) -> None:
    """Also images in which nothing was found."""
    found = []
    for count, name in enumerate(names):
        boxes, scores = np.random.rand(count, 4).astype(np.float32), np.random.rand(count).astype(np.float32)
        found.append(ImageDetections(name, boxes, scores, np.arange(count)))
    back = _unpack(ImageDetections, _pack(found))
    assert [each.image_id for each in back] == list(names)
    for ours, theirs in zip(back, found, strict=True):
        assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(ours[1:], theirs[1:], strict=True))
