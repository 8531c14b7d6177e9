import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rcnn.data.images import read_image
from rcnn.data.selective_search import MIN_SIDE, selective_search
from rcnn.evaluation.recall import evaluate_recall

COLOURS = ((220, 40, 40), (40, 180, 60), (50, 60, 220), (240, 220, 60))
RECTANGLES = ((20, 30, 99, 129), (130, 20, 279, 69), (150, 100, 219, 219), (240, 120, 289, 169))  # inclusive
IN_ANOTHER_PROCESS = """
import sys, numpy as np
from rcnn.data.selective_search import selective_search
image, out = np.load(sys.argv[1]), sys.argv[2]
np.save(out, selective_search(image, mode="fast", most=500, seed=0, side=200))
"""


def rectangles(height: int = 240, width: int = 320) -> np.ndarray:
    image = np.full((height, width, 3), 128, np.uint8)
    for (x1, y1, x2, y2), colour in zip(RECTANGLES, COLOURS, strict=True):
        image[y1 : y2 + 1, x1 : x2 + 1] = colour
    return image


def texture(seed: int, height: int = 120, width: int = 180) -> np.ndarray:
    """Blobs of many colours: a few hundred regions."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)


def search(image: np.ndarray, **more) -> np.ndarray:
    return selective_search(image, **{"mode": "fast", "most": 2000, "seed": 0, "side": 200, **more})


def best_overlaps(boxes: np.ndarray, with_boxes: np.ndarray) -> np.ndarray:
    shared = np.minimum(boxes[:, None, 2:], with_boxes[:, 2:]) - np.maximum(boxes[:, None, :2], with_boxes[:, :2]) + 1
    inside = shared.clip(min=0).prod(2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(1) for b in (boxes, with_boxes)]
    return (inside / (areas[0][:, None] + areas[1] - inside)).max(1)


@pytest.mark.parametrize(("mode", "side"), [("fast", 160), ("fast", 400), ("quality", 160)])
def test_finds_rectangles(mode: str, side: int) -> None:
    boxes = search(rectangles(), mode=mode, side=side)
    assert (best_overlaps(np.array(RECTANGLES, np.float32), boxes) > 0.8).all()


def test_the_search_in_the_picture_itself_is_exact() -> None:
    """At its own size nothing is rounded: x2 is the last column of the rectangle, not the one after it."""
    found = {tuple(box) for box in search(rectangles(), side=320).astype(int).tolist()}
    assert (0, 0, 319, 239) in found
    assert (best_overlaps(np.array(RECTANGLES, np.float32), np.array(sorted(found), np.float32)) > 0.95).all()


def test_colours_are_not_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV takes BGR, we RGB."""
    seen = []
    monkeypatch.setattr(
        "rcnn.data.selective_search._search", lambda image, mode: seen.append(image) or np.zeros((0, 4))
    )
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 255
    assert search(red, side=30).shape == (0, 4)
    assert (seen[0] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [(120, 180), (180, 120), (61, 200), (333, 47)])
@pytest.mark.parametrize("side", [70, 150, 250])
def test_boxes_are_proper(size: tuple[int, int], side: int) -> None:
    """Whole pixels inside the picture, no smaller than the least side, none twice."""
    boxes = search(texture(1, *size), side=side)
    assert boxes.dtype == np.float32 and len(boxes) > 2
    assert (boxes == np.rint(boxes)).all() and (boxes >= 0).all()
    assert (boxes[:, 2] <= size[1] - 1).all() and (boxes[:, 3] <= size[0] - 1).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_most_takes_the_first() -> None:
    every = search(texture(2))
    assert len(every) > 100
    assert np.array_equal(search(texture(2), most=40), every[:40])


def test_large_boxes_tend_to_come_first() -> None:
    boxes = search(texture(3))
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    quarter = len(boxes) // 4
    assert np.median(areas[:quarter]) > np.median(areas) > np.median(areas[-quarter:])


def test_another_seed_only_changes_the_order() -> None:
    one, other = search(texture(4), seed=0), search(texture(4), seed=1)
    assert not np.array_equal(one, other)
    assert np.array_equal(np.unique(one, axis=0), np.unique(other, axis=0))


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_what_ran_before_does_not_matter(mode: str) -> None:
    first = search(texture(5), mode=mode, side=120)
    for seed in (6, 7):
        search(texture(seed), mode=mode, side=120)
    assert np.array_equal(search(texture(5), mode=mode, side=120), first)


def test_the_number_of_threads_does_not_matter() -> None:
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 4):
            cv2.setNumThreads(count)
            results.append(search(texture(8, 200, 300), side=300))
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(*results)


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", texture(9))
    search(texture(10))
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "image.npy"), str(tmp_path / "boxes.npy")]
    subprocess.run(command, check=True)
    assert np.array_equal(np.load(tmp_path / "boxes.npy"), search(texture(9), most=500))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 3), (1, 3000), (3000, 2)])
@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_tiny_and_thin_pictures(size: tuple[int, int], mode: str) -> None:
    boxes = search(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), mode=mode)
    assert (len(boxes) > 0) == (min(size) > MIN_SIDE)


def test_one_colour_is_one_region() -> None:
    assert search(np.full((60, 90, 3), 77, np.uint8)).tolist() == [[0, 0, 89, 59]]


@pytest.mark.parametrize("wrong", [{"mode": "best"}, {"most": 0}, {"side": 0}])
def test_refuses_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"selective search: .*use the mode fast or quality and at least 1"):
        selective_search.__wrapped__(texture(0), **{"mode": "fast", "most": 10, "seed": 0, **wrong})


def test_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(ImportError, match="opencv-contrib-python-headless"):
        search(texture(0))


@pytest.mark.parity
def test_covers_the_objects_of_real_pictures(shared: Path) -> None:
    """Measured: 29 of the 32 objects of these pictures at IoU 0.5."""
    from rcnn.data.open import open_dataset

    records = list(open_dataset("auto", shared / "data" / "voc2007", "test"))[:12]
    boxes = [search(read_image(record.path), side=300) for record in records]
    assert evaluate_recall(records, boxes, offset=1.0)["bins"]["all"]["recall"][0] > 0.8
