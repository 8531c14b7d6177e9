from pathlib import Path

import cv2
import jaxtyping
import numpy as np
import pytest
import torch

from rcnn.inference.predictor import Predictor, Result
from rcnn.inference.step import DetectStep
from rcnn.models.faster_rcnn import FasterRCNN
from tests import tiny

CLASSES = ("ant", "bee", "cat")


def predictor(model: FasterRCNN | None = None, *, threshold: float = 0.0, short: int = 64) -> Predictor:
    step = DetectStep(model or tiny.detector(), device=torch.device("cpu"))
    return Predictor(step, CLASSES, short=short, long=short * 3 // 2, multiple=16, threshold=threshold)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def same(a: Result, b: Result) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_definition_of_a_result() -> None:
    found = predictor()(picture(64, 96))
    count = len(found.boxes)
    assert 0 < count <= 10 and found.boxes.shape == (count, 4)
    assert len(found.scores) == len(found.labels) == len(found.names) == count
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.names == [CLASSES[label - 1] for label in found.labels]
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [(31, 47), (64, 96), (333, 200), (203, 1011), (96, 64)])
def test_boxes_lie_on_the_picture_as_given(size: tuple[int, int], offset: float) -> None:
    model = tiny.detector(offset=offset)
    with torch.no_grad():
        model.head.bbox_pred.weight.mul_(300)  # so that boxes reach over the edges
    found = predictor(model)(picture(*size))
    assert len(found.boxes)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, [2, 0]] <= size[1] - offset).all() and (found.boxes[:, [3, 1]] <= size[0] - offset).all()


def test_a_scaled_picture_gives_scaled_boxes() -> None:
    pixels = picture(64, 96)
    small = predictor(tiny.detector(offset=0.0))(pixels)
    large = predictor(tiny.detector(offset=0.0), short=64)(np.repeat(np.repeat(pixels, 2, 0), 2, 1))
    assert np.allclose(large.boxes, 2 * small.boxes, atol=1.0)


def test_paths_arrays_and_lists_agree(tmp_path: Path) -> None:
    pixels = picture(50, 70)
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), pixels[:, :, ::-1])
    detect = predictor()
    expected = detect(pixels)
    for found in (detect(path), detect(str(path)), *detect([pixels, path]), *detect((str(path),))):
        assert same(found, expected)
    assert detect([]) == []


def test_a_view_of_an_array_is_as_good_as_a_copy() -> None:
    pixels, detect = picture(100, 140), predictor()
    for view in (pixels[:, :, ::-1], pixels[::-1], pixels[10:70:2, ::2]):
        assert same(detect(view), detect(view.copy()))


def test_the_threshold_leaves_weak_ones_out() -> None:
    pixels = picture(64, 96)
    every = predictor()(pixels)
    middle = float(every.scores[len(every.scores) // 2])
    found = predictor(threshold=middle)(pixels)
    assert 0 < len(found.boxes) < len(every.boxes)
    assert np.array_equal(found.scores, every.scores[every.scores >= middle])
    assert predictor(threshold=1.1)(pixels).names == []


def test_the_memory_of_the_picture_is_left_alone() -> None:
    pixels = picture(64, 96)
    kept = pixels.copy()
    predictor()(pixels)
    assert np.array_equal(pixels, kept)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((64, 96), np.uint8),
        np.zeros((64, 96, 4), np.uint8),
        np.zeros((3, 64, 96), np.uint8),
        np.zeros((64, 96, 3), np.float32),
        np.zeros((0, 96, 3), np.uint8),
    ],
    ids=["grey", "RGBA", "channels first", "float", "empty"],
)
def test_arrays_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # the checker, which users do not run, would refuse them first
    with pytest.raises(ValueError, match=r"\(h, w, 3\) RGB array of uint8, not \("):
        predictor()(wrong)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        predictor()(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"missing\.jpg"):
        predictor()([str(tmp_path / "missing.jpg")])


def test_a_detector_without_rpn_looks_into_the_regions_that_it_is_given() -> None:
    model, image = tiny.detector(), picture(128, 192)
    regions = np.array([[10, 20, 90, 100], [0, 0, 191, 127]], np.float32)
    detector = predictor(model)
    seen = []
    detector.propose = lambda pixels: seen.append(pixels.shape) or regions
    batch = detector._batch(image)
    assert seen == [(128, 192, 3)] and batch.scale.item() == 0.5
    assert batch.proposals[0].tolist() == (regions / 2).tolist() and batch.proposals_valid.all()
    assert 0 < len(detector(image).boxes) <= 2 * len(CLASSES)
    detector.propose = lambda pixels: regions[:0]
    assert len(detector(image).boxes) == 0
