"""Targets: annotations, detections and recipes."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rcnn.config import Recipe, recipe_to_dict
from rcnn.data.coco import load_coco
from rcnn.data.folder import load_folder
from rcnn.data.records import RecordTable
from rcnn.data.voc import load_voc
from rcnn.evaluation.ground_truth import read_coco_ground_truth
from rcnn.evaluation.results import ImageDetections, check_detections, read_comp4, read_detections
from rcnn.recipes.find import find_recipe
from tests.fuzz.mutate import strike_json, strike_text, strike_xml
from tests.fuzz.run import Reader, Target

XML = b"""<annotation><folder>VOC2007</folder><filename>a.jpg</filename><size><width>40</width><height>30</height>
<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>30</xmax><ymax>29</ymax></bndbox></object><object><name>dog</name><bndbox><xmin>1.5</xmin><ymin>2</ymin>
<xmax>9e0</xmax><ymax>20</ymax></bndbox></object></annotation>"""
CSV = b"""image,x1,y1,x2,y2,label,difficult
a.png,1,2,30,29,cat,0
a.png,4.5,2,10,20,"small, dog",1
b.png,,,,,,
"""
COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 30, "width": 40},
        {"id": 7, "file_name": "b.png", "height": 30, "width": 40},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 20, 20.5], "area": 400.0, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 9, 9]},
    ],
}
DETECTIONS = {
    "classes": ["cat", "dog"],
    "category_ids": [3, 5],
    "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}, {"id": 7}],
    "detections": [{"image_id": i, "category_id": 3, "bbox": [1, 2, 20, 20.5], "score": 0.9} for i in (1, 7)],
}
RESULTS = DETECTIONS["detections"]
COMP4 = b"1 0.9 1.0 2.0 30.0 29.0\n7 0.123456789 1 2 3 4\n"


def _pictures(folder: Path) -> None:
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((30, 40, 3), np.uint8))


def _used(table: RecordTable) -> None:
    """What a training does with a set first; every record can be had, and its picture lies in the set's folder."""
    for record in table:
        assert np.isfinite(record.boxes).all() and record.height > 0 and record.width > 0
        assert Path(record.path).resolve().is_relative_to(Path(table.root).resolve()), record.path


def _voc(folder: Path, file: str, seed: bytes) -> Reader:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    _pictures(folder / "JPEGImages")
    for name in ("a", "b"):
        (folder / "Annotations" / f"{name}.xml").write_bytes(XML)
    (folder / "ImageSets" / "Main" / "s.txt").write_text("a\nb\n")

    def read() -> None:
        _used(load_voc(folder, "s", offset=1.0, pictures=True))

    return Reader(folder / file, read, [seed])


def _coco(folder: Path, pictures: bool) -> Reader:
    (folder / "annotations").mkdir()
    _pictures(folder)
    path = folder / "annotations" / "instances_s.json"
    return Reader(path, lambda: _used(load_coco(folder, "s", offset=0.0, pictures=pictures)), [_json(COCO)])


def _csv(folder: Path) -> Reader:
    _pictures(folder)
    return Reader(folder / "s.csv", lambda: _used(load_folder(folder, "s", offset=0.0)), [CSV])


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _checked(found: list[ImageDetections]) -> None:
    for image in found:
        check_detections(image, 2)


def _detections(folder: Path) -> Reader:
    path, classes = folder / "detections.json", ("cat", "dog")

    def read() -> None:
        _checked(read_detections(path, offset=1.0, classes=classes, category_ids=(3, 5), image_ids=(1, 7)).detections)
        read_detections(path, offset=1.0, category_ids=(3, 5), classes=classes)

    return Reader(path, read, [_json(DETECTIONS), _json(RESULTS)])


def _comp4(folder: Path) -> Reader:
    (folder / "comp4_det_s_dog.txt").write_text("")
    path, classes = folder / "comp4_det_s_cat.txt", ("cat", "dog")
    return Reader(path, lambda: _checked(read_comp4(folder, classes, offset=1.0, image_ids=("1", "7"))), [COMP4])


def _simple(folder: Path, name: str, read: Callable[[Path], object], seed: bytes) -> Reader:
    return Reader(folder / name, lambda: read(folder / name), [seed])


def _recipe(path: Path) -> None:
    find_recipe(str(path))


def _ground_truth(path: Path) -> None:
    read_coco_ground_truth(path, ("cat", "dog"), offset=1.0)


RECIPE = _json(recipe_to_dict(Recipe()))
TARGETS = [
    Target("VOC .xml", partial(_voc, file="Annotations/b.xml", seed=XML), strike_xml),
    Target("VOC list", partial(_voc, file="ImageSets/Main/s.txt", seed=b"a\nb\n"), strike_text),
    Target("COCO .json", partial(_coco, pictures=True), strike_json),
    Target("COCO .json without pictures", partial(_coco, pictures=False), strike_json),
    Target("folder .csv", _csv, strike_text),
    Target("detections.json", _detections, strike_json),
    Target("comp4 files", _comp4, strike_text),
    Target("COCO ground truth", partial(_simple, name="g.json", read=_ground_truth, seed=_json(COCO)), strike_json),
    Target("recipe .json", partial(_simple, name="r.json", read=_recipe, seed=RECIPE), strike_json),
]
