import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.boxes_check import CLIPPED, NO_AREA, NOT_FINITE
from rcnn.data.draft import NOT_CHOSEN
from rcnn.data.voc import VOC_CLASSES, find_voc_root, load_voc
from rcnn.testing import assert_is_dataset

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><object><name>&b;</name></object></annotation>'


def test_reads_boxes_labels_and_difficult(voc_folder) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22), ("cat", 5, 6, 60, 40, 1))
    voc_folder.add("b")
    table = load_voc(voc_folder.root, "trainval", offset=1.0)
    assert (table.name, table.classes, len(table)) == ("trainval", ("cat", "dog"), 2)
    assert table[0].image_id == "a" and table[0].path == str(voc_folder.root / "JPEGImages" / "a.jpg")
    assert table[0].boxes.tolist() == [[0, 1, 10, 21], [4, 5, 59, 39]]
    assert table[0].labels.tolist() == [2, 1] and table[0].ignore.tolist() == [False, True]
    assert table[0].areas.tolist() == [11 * 21, 56 * 35] and not table[0].crowd.any()
    assert len(table[1].boxes) == 0 and not table.report.total
    assert_is_dataset(table, offset=1.0)


def test_continuous_boxes_have_the_same_width(voc_folder) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    assert load_voc(voc_folder.root, "trainval", offset=0.0)[0].boxes.tolist() == [[0, 1, 11, 22]]


def test_a_devkit_has_years_and_the_20_classes(voc_year: Callable, tmp_path: Path) -> None:
    for year in ("2007", "2012"):
        voc_year(year).add(f"{year}_1", ("dog", 1, 2, 11, 22))
    table = load_voc(tmp_path / "kit", "2007_trainval+2012_trainval", offset=1.0)
    assert table.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert [record.image_id for record in table] == ["2007_1", "2012_1"]
    assert [record.labels.tolist() for record in table] == [[12], [12]]
    with pytest.raises(ValueError, match=r"no set '2007_test': .*known: 2007_trainval, 2012_trainval"):
        load_voc(tmp_path / "kit", "2007_test", offset=1.0)
    with pytest.raises(ValueError, match=r"no set 'trainval': did you mean '20.._trainval'"):
        load_voc(tmp_path / "kit", "trainval", offset=1.0)


def test_the_devkit_may_lie_inside(tmp_path: Path, voc_year: Callable) -> None:
    voc_year("2007").add("a")
    (tmp_path / "kit").rename(tmp_path / "VOCdevkit")
    assert find_voc_root(tmp_path) == tmp_path / "VOCdevkit"


@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".JPG"])
def test_pictures_may_have_other_endings(voc_folder, suffix: str, picture: Callable[..., Path]) -> None:
    voc_folder.annotate("a", ("dog", 1, 2, 11, 22), size=(40, 60))
    picture(voc_folder.root / "JPEGImages" / f"a{suffix}")
    assert load_voc(voc_folder.root, "trainval", offset=1.0)[0].path.endswith(f"a{suffix}")


def test_lists_may_hold_endings_and_empty_lines(voc_folder) -> None:
    voc_folder.add("a b", ("dog", 1, 2, 11, 22))
    (voc_folder.root / "ImageSets" / "Main" / "test.txt").write_text("\n a b.jpg \r\n\n")
    assert load_voc(voc_folder.root, "test", offset=1.0)[0].image_id == "a b"


def test_bad_boxes_are_mended_and_counted(voc_folder) -> None:
    voc_folder.add("a", ("dog", 0, 0, 61, 41), ("dog", 9, 9, 9, 20), ("dog", "nan", 1, 5, 5), ("dog", 9.5, 9, 12, 20))
    table = load_voc(voc_folder.root, "trainval", offset=1.0)
    assert table[0].boxes.tolist() == [[0, 0, 59, 39], [8.5, 8, 11, 19]]
    assert table.report.counts == {CLIPPED: 1, NO_AREA: 1, NOT_FINITE: 1}
    assert table.report.examples[NO_AREA] == [
        f"{voc_folder.root}/Annotations/a.xml: object 2 'dog': (9, 9, 9, 20) in 60x40"
    ]
    with pytest.raises(ValueError, match=r"a\.xml: object 2 'dog': \(9, 9, 9, 20\)"):
        load_voc(voc_folder.root, "trainval", offset=1.0, strict=True)


def test_an_annotated_size_may_be_missing(voc_folder) -> None:
    path = voc_folder.add("a", ("dog", 1, 2, 11, 22))
    path.write_text(
        path.read_text().replace("<width>60</width>", "<width>0</width>").replace("<height>40</height>", "")
    )
    table = load_voc(voc_folder.root, "trainval", offset=1.0)
    assert table.sizes.tolist() == [[40, 60]] and not table.report.total


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        ("<annotation><object>", "is no valid XML"),
        ("", "is no valid XML"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "is no valid XML"),
        (BOMB, "declares an XML entity"),
        ("<annotations/>", "is no VOC annotation: its first element is <annotations>"),
        ("<annotation><object/></annotation>", "object 1 '': has no name"),
        ("<annotation><object><name>dog</name></object></annotation>", "object 1 'dog': has no bndbox/xmin"),
        (
            "<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>l0</ymin></bndbox></object></annotation>",
            "object 1 'dog': bndbox/ymin is 'l0', not a number",
        ),
        ("<annotation><size><width>wide</width></size></annotation>", "size/width is 'wide', not a number"),
    ],
)
def test_unusable_annotations_are_named(voc_folder, xml: str, problem: str) -> None:
    voc_folder.add("a").write_text(xml)
    with pytest.raises(ValueError, match=rf"Annotations/a\.xml.*{problem}") as error:
        load_voc(voc_folder.root, "trainval", offset=1.0)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(voc_folder) -> None:
    path = voc_folder.add("a", ("dog", 1, 2, 11, 22))
    (voc_folder.root / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"JPEGImages/a\.jpg: no such image file"):
        load_voc(voc_folder.root, "trainval", offset=1.0)
    path.unlink()
    with pytest.raises(ValueError, match=r"Annotations/a\.xml: no such annotation"):
        load_voc(voc_folder.root, "trainval", offset=1.0)


def test_problems_of_many_files_come_in_one_message(voc_folder) -> None:
    for number in range(50):
        voc_folder.add(f"{number:02d}", ("dog", None, 2, 11, 22))
    with pytest.raises(ValueError, match=r"unusable annotation \(50\): .*00\.xml.*01\.xml.*02\.xml.*and 47 more"):
        load_voc(voc_folder.root, "trainval", offset=1.0)


def test_classes_are_checked(voc_folder) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22), ("person", 1, 2, 11, 22), ("wolf", 1, 2, 11, 22))
    with pytest.raises(ValueError, match=r"a\.xml: object 3 'wolf': class 'wolf' is not known: known: dog"):
        load_voc(voc_folder.root, "trainval", classes=("dog",), offset=1.0)
    table = load_voc(voc_folder.root, "trainval", classes=("wolf", "dog"), offset=1.0)
    assert table[0].labels.tolist() == [2, 1] and table.report.counts == {NOT_CHOSEN: 1}


def test_sets_and_roots_that_cannot_be(voc_folder, tmp_path: Path) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    lists = voc_folder.root / "ImageSets" / "Main"
    (lists / "empty.txt").write_text("\n")
    (lists / "outside.txt").write_text("../../secret\n")
    (lists / "twice.txt").write_text("a\na\n")
    for name, problem in (
        ("trainvl", r"no set 'trainvl': did you mean 'trainval'\?"),
        ("empty", r"empty\.txt: the set is empty"),
        ("outside", r"outside\.txt: line 1: .*leads out"),
        ("twice", r"1 image id\(s\) come more than once, first 'a'"),
        ("trainval+twice", "2 image id"),
    ):
        with pytest.raises(ValueError, match=problem):
            load_voc(voc_folder.root, name, offset=1.0)
    with pytest.raises(ValueError, match="neither a VOCdevkit"):
        load_voc(tmp_path, "trainval", offset=1.0)


@pytest.mark.slow
def test_all_published_annotations(shared: Path, tmp_path: Path, picture: Callable[..., Path]) -> None:
    with tarfile.open(shared / "data" / "voc_annotations" / "voc2007_annotations_full.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    names = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()
    for name in names:
        (folder / "JPEGImages").mkdir(exist_ok=True)
        (folder / "JPEGImages" / f"{name}.jpg").symlink_to(tmp_path / "one.jpg")
    picture(tmp_path / "one.jpg", 500, 500)
    table = load_voc(tmp_path, "2007_test", offset=1.0)
    assert len(table) == 4952 and table.num_boxes.sum() == 14976 and table.trained_boxes() == 12032
    record = table[0]
    assert record.image_id == "000001" and record.boxes.tolist() == [[47, 239, 194, 370], [7, 11, 351, 497]]


def test_real_folders(shared: Path) -> None:
    table = load_voc(shared / "data" / "bccd", "train+val+test", offset=1.0)
    assert_is_dataset(table, offset=1.0)
    assert len(table) == 364 and table.report.counts == {NO_AREA: 2}
    assert np.bincount(np.concatenate([r.labels for r in table])).tolist() == [0, 361, 4153, 372]


def test_an_annotation_of_megabytes_is_refused(voc_folder) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    elements = "<a/>" * (1 << 22)  # a few hundred megabytes in memory
    (voc_folder.root / "Annotations" / "a.xml").write_text(f"<annotation>{elements}</annotation>")
    with pytest.raises(ValueError, match=r"a\.xml: .*longer than 16777216 bytes"):
        load_voc(voc_folder.root, "trainval", offset=1.0)


@pytest.mark.parametrize(
    "entity", ['<!ENTITY a SYSTEM "file://{secret}">', '<!ENTITY % a SYSTEM "file://{secret}"> %a;', '<!ENTITY a "bb">']
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(voc_folder, tmp_path: Path, entity: str, encoding: str) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    (tmp_path / "secret").write_text("secret")
    declared = f"<!DOCTYPE annotation [{entity.format(secret=tmp_path / 'secret')}]>"
    text = f'<?xml version="1.0" encoding="{encoding}"?>{declared}<annotation><folder>&a;</folder></annotation>'
    (voc_folder.root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"a\.xml: declares an XML entity, which is refused as unsafe"):
        load_voc(voc_folder.root, "trainval", offset=1.0)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "b/../../a", "C:\\a"])
def test_names_in_a_list_that_lead_out_are_refused(voc_folder, name: str) -> None:
    voc_folder.add("a", ("dog", 1, 2, 11, 22))
    (voc_folder.root / "ImageSets" / "Main" / "odd.txt").write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match=r"odd\.txt: line 2: image path .* leads out of the data set's folder"):
        load_voc(voc_folder.root, "odd", offset=1.0)
