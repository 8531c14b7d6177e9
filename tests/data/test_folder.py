from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.data.boxes_check import CLIPPED
from rcnn.data.folder import list_csv_sets, load_folder
from rcnn.testing import assert_is_dataset

HEADER = "image,x1,y1,x2,y2,label\n"


@pytest.fixture
def own(tmp_path: Path, picture: Callable[..., Path]) -> Path:
    """A folder with pictures a.jpg, sub/b.png and images/c.jpg of 60x40."""
    for name in ("a.jpg", "sub/b.png", "images/c.jpg"):
        picture(tmp_path / name)
    return tmp_path


def test_reads_boxes(own: Path) -> None:
    (own / "train.csv").write_text(
        HEADER + "sub/b.png,1,2.5,11,22,dog\na.jpg,,,,,\nsub/b.png,0,0,60,40,cat\nc.jpg,,,,,\n"
    )
    table = load_folder(own, "train", offset=1.0)
    assert [record.image_id for record in table] == ["sub/b.png", "a.jpg", "c.jpg"]
    assert table[0].boxes.tolist() == [[1, 2.5, 10, 21], [0, 0, 59, 39]] and table[0].labels.tolist() == [2, 1]
    assert table.classes == ("cat", "dog") and table.num_boxes.tolist() == [2, 0, 0]
    assert load_folder(own, "train", offset=0.0)[0].boxes.tolist() == [[1, 2.5, 11, 22], [0, 0, 60, 40]]
    assert_is_dataset(table, offset=1.0)


def test_columns_may_stand_in_any_order(own: Path) -> None:
    text = '\ufefflabel, difficult, image, x2, y2, x1, y1, note\r\n"big, dog", 1, a.jpg, 11, 22, 1, 2, x\r\n'
    (own / "train.csv").write_text(text, encoding="utf-8")
    table = load_folder(own, "train", offset=0.0)
    assert table.classes == ("big, dog",) and table[0].boxes.tolist() == [[1, 2, 11, 22]]
    assert table[0].ignore.tolist() == [True]


def test_sets_are_merged_and_share_no_picture(own: Path) -> None:
    (own / "x.csv").write_text(HEADER + "a.jpg,1,2,11,22,dog\n")
    (own / "y.csv").write_text(HEADER + "c.jpg,1,2,11,22,cat\n")
    (own / "z.csv").write_text(HEADER + "c.jpg,1,2,11,22,cat\na.jpg,1,2,11,22,dog\n")
    assert load_folder(own, "x+y", offset=1.0).num_boxes.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"z\.csv: line 3: a\.jpg is already in .*x\.csv"):
        load_folder(own, "x+z", offset=1.0)


def test_bad_boxes_are_mended(own: Path) -> None:
    (own / "train.csv").write_text(HEADER + "a.jpg,-5,2,11,22,dog\n")
    assert load_folder(own, "train", offset=1.0).report.counts == {CLIPPED: 1}
    with pytest.raises(ValueError, match=r"train\.csv: line 2 'dog': \(-5, 2, 11, 22\) in 60x40"):
        load_folder(own, "train", offset=1.0, strict=True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a.jpg,1,2,11,two,dog", "line 2: y2 is 'two', not a number"),
        ("a.jpg,1,2,,22,dog", "line 2: has no x2"),
        ("a.jpg,1,2,11,22,", "line 2: the box has no label"),
        ("a.jpg,1,2", "line 2: the box has no label"),
        (",1,2,11,22,dog", "line 2: image path '' leads out"),
        ("../a.jpg,1,2,11,22,dog", r"line 2: image path '\.\./a\.jpg' leads out"),
        ("d.jpg,1,2,11,22,dog", r"d\.jpg: no such image file"),
    ],
)
def test_unusable_lines_are_named(own: Path, line: str, problem: str) -> None:
    (own / "train.csv").write_text(HEADER + line + "\n")
    with pytest.raises(ValueError, match=problem):
        load_folder(own, "train", offset=1.0)


def test_unusable_files_are_named(own: Path) -> None:
    (own / "train.csv").write_text("image;x1;y1;x2;y2;label\n")
    with pytest.raises(
        ValueError, match=r"train\.csv: its first line .* lacks the column\(s\) image.*begin the file with"
    ):
        load_folder(own, "train", offset=1.0)
    (own / "empty.csv").write_text(HEADER)
    with pytest.raises(ValueError, match="lists no image"):
        load_folder(own, "empty", offset=1.0)
    with pytest.raises(ValueError, match=r"tain\.csv: no such file for the set 'tain': known: empty"):
        load_folder(own, "tain", offset=1.0)


def test_other_csv_files_are_no_sets(own: Path) -> None:
    (own / "train.csv").write_text(HEADER)
    (own / "prices.csv").write_text("day,price\n")
    assert list_csv_sets(own) == ["train"]


def test_a_quote_that_is_not_closed_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text('image,x1,y1,x2,y2,label\na.png,1,2,3,4,"' + "x" * 200_000)
    with pytest.raises(ValueError, match=r"s\.csv: line \d+: field larger than .*quote"):
        load_folder(tmp_path, "s", offset=0.0)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "b/../../a.png", "C:\\a.png"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.csv").write_text(f"{HEADER}{name},1,2,3,4,dog\n")
    with pytest.raises(ValueError, match=r"s\.csv: line 2: image path .* leads out of the data set's folder"):
        load_folder(tmp_path, "s", offset=0.0)
