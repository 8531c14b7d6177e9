"""Small data sets on disk, written file by file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rcnn.data.records import Record, RecordTable


def write_picture(path: Path, height: int = 40, width: int = 60, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(pixels, (width, height)))
    return path


class VocFolder:
    """Writes a VOC-style folder image by image; an object is (name, xmin, ymin, xmax, ymax[, difficult])."""

    def __init__(self, root: Path):
        self.root = root
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)

    def add(
        self, name: str, *objects: Sequence[Any], size: tuple[int, int] = (40, 60), split: str = "trainval"
    ) -> Path:
        write_picture(self.root / "JPEGImages" / f"{name}.jpg", *size)
        return self.annotate(name, *objects, size=size, split=split)

    def annotate(self, name: str, *objects: Sequence[Any], size: tuple[int, int], split: str = "trainval") -> Path:
        xml = "".join(self._object(*each) for each in objects)
        text = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{xml}</annotation>"
        with (self.root / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")
        path = self.root / "Annotations" / f"{name}.xml"
        path.write_text(text)
        return path

    @staticmethod
    def _object(label: str, *values: Any) -> str:
        corners = "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=False) if v is not None
        )
        difficult = f"<difficult>{values[4]}</difficult>" if len(values) > 4 else ""
        return f"<object><name>{label}</name>{difficult}<bndbox>{corners}</bndbox></object>"


class CocoFolder:
    """Collects images and annotations and writes one COCO set."""

    def __init__(self, root: Path, name: str = "train2017", folder: str | None = None):
        self.root, self.name, self.folder = root, name, name if folder is None else folder
        self.document: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "zebra"}],
        }

    def add(self, image_id: int, *boxes: Sequence[float], category: int = 7, file_name: str = "", **more: Any) -> None:
        file_name = file_name or f"{image_id:012d}.jpg"
        write_picture(self.root / self.folder / file_name)
        self.document["images"].append({"id": image_id, "file_name": file_name, "height": 40, "width": 60})
        for box in boxes:
            entry = {"id": len(self.document["annotations"]) + 1, "image_id": image_id, "category_id": category}
            self.document["annotations"].append({**entry, "bbox": list(box), **more})

    def write(self) -> Path:
        path = self.root / "annotations" / f"instances_{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document))
        return path


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a picture of random pixels: picture(path, height, width)."""
    return write_picture


@pytest.fixture
def voc_folder(tmp_path: Path) -> VocFolder:
    """An empty VOC-style folder."""
    return VocFolder(tmp_path / "set")


@pytest.fixture
def voc_year(tmp_path: Path) -> Callable[[str], VocFolder]:
    """Makes a year's folder in the VOCdevkit `tmp_path / kit`."""
    return lambda year: VocFolder(tmp_path / "kit" / f"VOC{year}")


@pytest.fixture
def coco_folder(tmp_path: Path) -> Callable[..., CocoFolder]:
    """Makes a COCO set below `tmp_path / coco`."""
    return lambda *args, **more: CocoFolder(tmp_path / "coco", *args, **more)


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., RecordTable]:
    """Makes a table of pictures of given sizes, the i-th with i % 4 boxes, all its pixels i."""

    def make(sizes: Sequence[tuple[int, int]], seed: int = 0) -> RecordTable:
        generator = np.random.default_rng(seed)
        return RecordTable.from_records(
            [_record(tmp_path, generator, i, *size) for i, size in enumerate(sizes)], "made", ("a", "b"), str(tmp_path)
        )

    return make


def _record(folder: Path, generator: np.random.Generator, index: int, height: int, width: int) -> Record:
    path = folder / f"{index}.png"
    cv2.imwrite(str(path), np.full((height, width, 3), index + 1, np.uint8))
    count = index % 4
    corners = np.sort(generator.uniform(0, 1, (count, 2, 2)), axis=1) * [width - 2, height - 2]
    corners[:, 1] += 1
    boxes = corners.reshape(-1, 4).astype(np.float32)
    return Record(
        image_id=f"image {index}",
        path=str(path),
        height=height,
        width=width,
        boxes=boxes,
        labels=generator.integers(1, 3, count),
        ignore=np.arange(count) == 2,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        crowd=np.zeros(count, np.bool_),
    )
