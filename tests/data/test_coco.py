import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.data.boxes_check import CLIPPED, NO_AREA, NOT_FINITE
from rcnn.data.coco import load_coco
from rcnn.data.draft import NOT_CHOSEN
from rcnn.testing import assert_is_dataset

Make = Callable[..., Any]


def test_reads_boxes_areas_and_crowds(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(9, (1, 2, 10, 20), area=150.5)
    coco.add(4)
    coco.add(5, (1, 2, 3, 4), category=3, iscrowd=1)
    coco.write()
    table = load_coco(coco.root, "train2017", offset=1.0)
    assert table.classes == ("zebra", "dog") and table.category_ids == (3, 7)  # in the order of their ids
    assert [r.image_id for r in table] == [9, 4, 5]
    assert table[0].boxes.tolist() == [[1, 2, 10, 21]] and table[0].areas.tolist() == [150.5]
    assert table[2].labels.tolist() == [1] and table[2].crowd.tolist() == table[2].ignore.tolist() == [True]
    assert load_coco(coco.root, "train2017", offset=0.0)[0].boxes.tolist() == [[1, 2, 11, 22]]
    assert_is_dataset(table, offset=1.0)


def test_area_is_that_of_the_box_unless_said(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20))
    coco.write()
    assert load_coco(coco.root, "train2017", offset=1.0)[0].areas.tolist() == [200]


def test_bad_boxes_are_mended_and_counted(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (-5, 2, 100, 20), (5, 5, 0, 9), (5, 5, -3, 9), (float("nan"), 1, 2, 3), (50, 30, 10.05, 9.999))
    coco.write()
    table = load_coco(coco.root, "train2017", offset=0.0)
    assert table.report.counts == {CLIPPED: 1, NO_AREA: 2, NOT_FINITE: 1}
    assert np.allclose(table[0].boxes, [[0, 2, 60, 22], [50, 30, 60, 39.999]])
    with pytest.raises(ValueError, match=r"instances_train2017\.json: annotation 2 'dog': \(5, 5, 0, 9\) in 60x40"):
        load_coco(coco.root, "train2017", offset=0.0, strict=True)


@pytest.mark.parametrize(
    ("image_set", "folder", "file_name"),
    [
        ("train2014", "images/train2014", "COCO_train2014_000000000009.jpg"),
        ("train2014", "train2014", "000000000009.jpg"),
        ("minival2014", "images/val2014", "COCO_val2014_000000000009.jpg"),
        ("valminusminival2014", "val2014", "COCO_val2014_000000000009.jpg"),
        ("val", "val", "some/where/x.jpg"),
        ("val", "images", "x.jpg"),
        ("val", ".", "x.jpg"),
        ("val", "annotations", "x.jpg"),
    ],
)
def test_layouts(coco_folder: Make, image_set: str, folder: str, file_name: str) -> None:
    coco = coco_folder(image_set, folder)
    coco.add(9, (1, 2, 10, 20), file_name=file_name)
    coco.write()
    expected = (coco.root / folder / file_name).resolve()
    assert Path(load_coco(coco.root, image_set, offset=1.0)[0].path).resolve() == expected


def test_names_of_2014_for_pictures_of_2017(coco_folder: Make) -> None:
    coco = coco_folder("train2014")
    coco.add(9, (1, 2, 10, 20))
    for name in ("COCO_train2014_000000000009.jpg", ""):
        coco.document["images"][0]["file_name"] = name
        coco.write()
        assert load_coco(coco.root, "train2014", offset=1.0)[0].path.endswith("train2014/000000000009.jpg")


def test_a_set_may_be_a_json_file(coco_folder: Make, tmp_path: Path) -> None:
    coco = coco_folder("train2017")
    coco.add(9, (1, 2, 10, 20), file_name="x.jpg")
    path = coco.write().rename(coco.root / "train2017" / "labels.json")
    for root, name in ((coco.root, str(path)), (tmp_path / "absent", str(path)), (path.parent, "labels.json")):
        assert load_coco(root, name, offset=1.0)[0].path.endswith("train2017/x.jpg")


def test_sets_are_merged(coco_folder: Make) -> None:
    for name, ids in (("a", (1, 2)), ("b", (3,)), ("c", (1,))):
        coco = coco_folder(name)
        for image_id in ids:
            coco.add(image_id, (1, 2, 10, 20))
        coco.write()
    assert [r.image_id for r in load_coco(coco.root, "a+b", offset=1.0)] == [1, 2, 3]
    assert [r.image_id for r in load_coco(coco.root, "a+c", offset=1.0)] == ["a/1", "a/2", "c/1"]


def test_merged_sets_must_agree_and_share_no_picture(coco_folder: Make) -> None:
    for name in ("a", "b", "c"):
        coco = coco_folder(name, "images")
        coco.add(1, (1, 2, 10, 20))
        coco.document["categories"][0]["name"] = "cat" if name == "c" else "dog"
        coco.write()
    with pytest.raises(ValueError, match=r"1 image id\(s\) come more than once, first '.*000000000001\.jpg'"):
        load_coco(coco.root, "a+b", offset=1.0)
    with pytest.raises(ValueError, match=r"instances_c\.json: its categories differ from .* in cat \(7\), dog \(7\)"):
        load_coco(coco.root, "a+c", offset=1.0)


def test_chosen_classes(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20), category=3)
    coco.add(2, (1, 2, 10, 20), category=7)
    coco.write()
    table = load_coco(coco.root, "train2017", classes=("dog",), offset=1.0)
    assert table.num_boxes.tolist() == [0, 1] and table.report.counts == {NOT_CHOSEN: 1}
    assert table.category_ids == (7,) and table[1].labels.tolist() == [1]
    with pytest.raises(
        ValueError, match=r"no category 'dgo' \(--data.classes\): did you mean 'dog'\? known: zebra, dog"
    ):
        load_coco(coco.root, "train2017", classes=("dgo",), offset=1.0)


def test_wrong_references_are_named(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20), category=8)
    coco.add(2, (1, 2, 10, 20))
    coco.document["annotations"][1]["image_id"] = 77
    coco.write()
    with pytest.raises(
        ValueError, match=r"annotation 1: its category_id 8 is not in .*7 dog.*annotation 2: .*image_id 77"
    ):
        load_coco(coco.root, "train2017", offset=1.0)


@pytest.mark.parametrize("file_name", ["../secret.jpg", "/etc/passwd", "C:\\x.jpg"])
def test_paths_that_lead_out_are_refused(coco_folder: Make, file_name: str) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20))
    coco.document["images"][0]["file_name"] = file_name
    coco.write()
    with pytest.raises(ValueError, match=r"instances_train2017\.json: image 1: image path .* leads out"):
        load_coco(coco.root, "train2017", offset=1.0)


def test_missing_pictures_and_sets_are_named(coco_folder: Make, tmp_path: Path) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20))
    coco.write()
    (coco.root / "train2017" / "000000000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"no image file '000000000001\.jpg' in .*train2017"):
        load_coco(coco.root, "train2017", offset=1.0)
    with pytest.raises(ValueError, match=r"no annotations of the set 'train2014'.*did you mean 'train2017'"):
        load_coco(coco.root, "train2014", offset=1.0)
    with pytest.raises(ValueError, match="no such folder"):
        load_coco(tmp_path / "absent", "train2017", offset=1.0)


def test_metrics_need_no_pictures(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20))
    coco.write()
    there = load_coco(coco.root, "train2017", offset=1.0)
    for path in (coco.root / "train2017").iterdir():
        path.unlink()
    table = load_coco(coco.root, "train2017", offset=1.0, pictures=False)
    assert table.sizes.tolist() == there.sizes.tolist() and table[0].boxes.tolist() == there[0].boxes.tolist()


def test_documents_that_cannot_be_used(coco_folder: Make) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 10, 20))
    whole = dict(coco.document)
    for change, problem in (
        ({"annotations": None}, "has no list 'annotations'"),
        ({"categories": []}, "has no categories"),
        ({"categories": whole["categories"] * 2}, "two categories have the id 7"),
        ({"images": whole["images"] * 2}, r"1 image id\(s\) come more than once, first 1"),
        ({"images": [], "annotations": []}, "lists no image"),
    ):
        coco.document = {**whole, **change}
        coco.write()
        with pytest.raises(ValueError, match=problem):
            load_coco(coco.root, "train2017", offset=1.0)


def test_a_test_set_has_no_annotations(coco_folder: Make) -> None:
    coco = coco_folder("test2017")
    coco.add(1)
    del coco.document["annotations"]
    path = coco.write()
    path.rename(path.with_name("image_info_test2017.json"))
    assert load_coco(coco.root, "test2017", offset=1.0).num_boxes.tolist() == [0]


def test_real_sets(shared: Path) -> None:
    subset = load_coco(shared / "data" / "coco_val2017_subset", "train+val", offset=0.0)
    assert (len(subset), len(subset.classes), subset.classes[0]) == (1000, 74, "person")
    official = load_coco(shared / "data" / "coco_official_mini", "train2017", offset=1.0)
    assert (len(official), len(official.classes), official.category_ids[-1]) == (80, 80, 90)
    for table, offset in ((subset, 0.0), (official, 1.0)):
        assert_is_dataset(table, offset=offset)
        assert not table.report.total


@pytest.mark.parametrize("size", [{"height": 1e308}, {"height": -5}, {"width": 0.5}])
def test_sizes_that_no_picture_has_are_refused_where_they_are_believed(tmp_path: Path, size: dict) -> None:
    image = {"id": 2**63, "file_name": "a.jpg", "height": 30, "width": 40}
    document = {"images": [image | size], "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    path = tmp_path / "s.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"s\.json: an image of .* pixels; correct its size"):
        load_coco(tmp_path, "s", offset=0.0, pictures=False)
    path.write_text(json.dumps(document | {"images": [image]}))  # an id that no integer of numpy holds
    assert load_coco(tmp_path, "s", offset=0.0, pictures=False)[0].image_id == str(2**63)


def test_a_size_that_is_not_said_is_that_of_the_set_s_own_picture(
    tmp_path: Path, picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, height in (("set", 30), ("elsewhere", 50)):
        (tmp_path / folder).mkdir()
        picture(tmp_path / folder / "a.jpg", height, 40)
    monkeypatch.chdir(tmp_path / "elsewhere")
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "set" / "s.json").write_text(json.dumps(document | {"annotations": []}))
    assert load_coco(tmp_path / "set", "s", offset=0.0, pictures=False)[0].height == 30
