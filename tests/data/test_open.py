from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.data.open import find_format, open_dataset


def test_finds_voc(voc_folder, voc_year: Callable, tmp_path: Path) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    voc_year("2012").add("a", ("dog", 1, 2, 11, 22))
    assert find_format("auto", voc_folder.root) == find_format("auto", tmp_path / "kit") == "voc"
    assert open_dataset("auto", voc_folder.root, "trainval").classes == ("dog",)
    assert len(open_dataset("auto", tmp_path / "kit", "2012_trainval").classes) == 20


def test_finds_coco(coco_folder: Callable, tmp_path: Path) -> None:
    coco = coco_folder()
    coco.add(1, (1, 2, 3, 4))
    path = coco.write()
    assert find_format("auto", coco.root) == find_format("auto", tmp_path / "absent", str(path)) == "coco"
    assert open_dataset("auto", coco.root, "train2017", offset=0.0)[0].boxes.tolist() == [[1, 2, 4, 6]]


def test_finds_a_folder(tmp_path: Path, picture: Callable[..., Path]) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "train.csv").write_text("image,x1,y1,x2,y2,label\na.jpg,1,2,3,4,dog\n")
    assert find_format("auto", tmp_path) == "folder"
    assert open_dataset("auto", tmp_path, "train", offset=1.0)[0].boxes.tolist() == [[1, 2, 2, 3]]


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no data set we know.*VOCdevkit.*COCO.*csv.*--data.root"):
        find_format("auto", tmp_path)
    with pytest.raises(ValueError, match=r"no such folder; --data\.root"):
        find_format("auto", tmp_path / "absent")


def test_passes_on_what_was_chosen(voc_folder) -> None:
    voc_folder.add("a", ("dog", 0, 2, 11, 22), ("cat", 1, 2, 11, 22))
    assert open_dataset("voc", voc_folder.root, "trainval", ("dog", "cat"), 1.0).classes == ("dog", "cat")
    with pytest.raises(ValueError, match="reaching outside its image"):
        open_dataset("voc", voc_folder.root, "trainval", (), 1.0, True)
