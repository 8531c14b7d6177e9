import hashlib
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.images import read_image
from rcnn.data.open import open_dataset
from rcnn.data.shapes import CLASSES, SIDES, draw_shapes, write_shapes
from rcnn.testing import assert_is_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=60, test=20, seed=1)
    return folder


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_is_a_sound_data_set(root: Path) -> None:
    for image_set, count in (("trainval", 60), ("test", 20)):
        table = open_dataset("auto", root, image_set, strict=True)
        assert_is_dataset(table, offset=1.0)
        assert len(table) == count and not table.report.total
        assert all(Path(record.path).name.startswith(f"{image_set}_") for record in table)
    assert set(open_dataset("auto", root, "trainval").classes) == set(CLASSES)


def test_has_variety(root: Path) -> None:
    table = open_dataset("auto", root, "trainval")
    assert table.num_boxes.min() == 0 and 2 < table.num_boxes.mean() < 5 and table.num_boxes.max() <= 6
    assert len({tuple(size) for size in table.sizes.tolist()}) == 3
    sides = np.concatenate([record.boxes[:, 2:] - record.boxes[:, :2] + 1 for record in table])
    assert sides.min() > 0.8 * SIDES[0] and sides.max() < 1.4 * SIDES[1]
    assert np.bincount(np.concatenate([record.labels for record in table]))[1:].min() > 30


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    """Also of the first images of a larger set."""
    write_shapes(tmp_path / "same", train=3, test=2, seed=1)
    write_shapes(tmp_path / "other", train=3, test=2, seed=2)
    whole, same, other = digest(root), digest(tmp_path / "same"), digest(tmp_path / "other")
    files = [name for name in same if not name.startswith("ImageSets")]
    assert len(files) == 10
    assert all(same[name] == whole[name] and same[name] != other[name] for name in files)


def test_train_and_test_differ(root: Path) -> None:
    images = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (root / "JPEGImages").iterdir()}
    assert len(images) == 80


def test_boxes_hold_the_colour_of_their_shape() -> None:
    for seed in range(10):
        image, shapes = draw_shapes(np.random.default_rng(seed))
        for shape in shapes:
            left, top, right, bottom = shape.box
            assert left >= 0 and top >= 0 and right <= image.shape[1] - 1 and bottom <= image.shape[0] - 1
            x, y = shape.outline.mean(0).astype(int)
            assert np.abs(image[y - 2 : y + 3, x - 2 : x + 3].mean((0, 1)) - shape.colour).max() < 20


def test_jpeg_keeps_the_picture(root: Path) -> None:
    image, _ = draw_shapes(np.random.default_rng([1, 0, 0]))
    read = read_image(root / "JPEGImages" / "trainval_00000.jpg")
    assert read.shape == image.shape and np.abs(read.astype(int) - image).mean() < 12
