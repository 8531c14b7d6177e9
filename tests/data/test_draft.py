import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.boxes_check import CLIPPED, NO_AREA
from rcnn.data.draft import NOT_CHOSEN, SIZE_DIFFERS, Draft, check_classes, finish

MakeDraft = Callable[..., Draft]


@pytest.fixture
def make_draft(tmp_path: Path, picture: Callable[..., Path]) -> MakeDraft:
    """A draft of pictures of 40x60 with the given objects (owner, box, label)."""

    def make(images: int, *objects: tuple[int, tuple[float, ...], str]) -> Draft:
        draft = Draft("train", str(tmp_path), "object", lambda boxes: boxes)
        for number in range(images):
            path = picture(tmp_path / f"{number}.jpg")
            draft.add_image(number, str(path), f"{number}.xml", (40, 60))
        for number, (owner, box, label) in enumerate(objects):
            draft.add_object(owner, number, box, label)
        return draft

    return make


def test_packs_objects_image_by_image(make_draft: MakeDraft) -> None:
    draft = make_draft(3, (2, (0, 0, 9, 9), "dog"), (0, (1, 2, 3, 4), "cat"), (2, (5, 5, 9, 9), "cat"))
    table = finish(draft, classes=(), offset=1.0, strict=True)
    assert table.classes == ("cat", "dog") and table.num_boxes.tolist() == [1, 0, 2]
    assert table[0].boxes.tolist() == [[1, 2, 2, 3]] and table[0].areas.tolist() == [4]
    assert table[2].boxes.tolist() == [[0, 0, 8, 8], [5, 5, 8, 8]] and table[2].labels.tolist() == [2, 1]


def test_mends_and_tells_once(make_draft: MakeDraft, caplog: pytest.LogCaptureFixture) -> None:
    draft = make_draft(1, (0, (-9, 5, 99, 9), "cat"), (0, (5, 5, 5, 9), "cat"), (0, (5, 5, 9, 9), "cat"))
    with caplog.at_level(logging.WARNING, "rcnn.data"):
        table = finish(draft, classes=("cat",), offset=0.0, strict=False)
    assert table[0].boxes.tolist() == [[0, 5, 60, 9], [5, 5, 9, 9]]
    assert table.report.counts == {NO_AREA: 1, CLIPPED: 1}
    assert len(caplog.records) == 1
    assert "0.xml: object 0 'cat': (-9, 5, 99, 9) in 60x40" in caplog.text


def test_strict_refuses(make_draft: MakeDraft) -> None:
    draft = make_draft(1, (0, (5, 5, 5, 9), "cat"))
    with pytest.raises(ValueError, match=r"without area.*0\.xml: object 0 'cat': \(5, 5, 5, 9\).*--data.no-strict"):
        finish(draft, classes=("cat",), offset=0.0, strict=True)


def test_unknown_classes_are_counted_with_one_example_each(make_draft: MakeDraft) -> None:
    draft = make_draft(1, *[(0, (1, 1, 9, 9), name) for name in ("cats", "cats", "dog")])
    with pytest.raises(
        ValueError, match=r"3 problem\(s\)(.|\n)*did you mean 'cat'\? known: cat(.|\n)*class 'dog'"
    ) as error:
        finish(draft, classes=("cat",), offset=0.0, strict=False)
    assert str(error.value).count("'cats' is not known") == 1


def test_known_classes_that_were_not_chosen_are_left_out(make_draft: MakeDraft, caplog) -> None:
    draft = make_draft(1, (0, (1, 1, 9, 9), "dog"), (0, (2, 1, 9, 9), "cat"), (0, (5, 5, 5, 5), "dog"))
    table = finish(draft, classes=("cat",), other_classes=("dog",), offset=0.0, strict=True)
    assert table.num_boxes.tolist() == [1] and table.report.counts == {NOT_CHOSEN: 2}
    assert "dog" in caplog.text


def test_the_picture_decides_its_size(make_draft: MakeDraft, picture: Callable[..., Path], caplog) -> None:
    draft = make_draft(1, (0, (1, 1, 50, 39), "cat"))
    picture(Path(draft.paths[0]), 60, 40)
    table = finish(draft, classes=(), offset=0.0, strict=False)
    assert table.sizes.tolist() == [[60, 40]] and table[0].boxes.tolist() == [[1, 1, 40, 39]]
    assert table.report.counts == {SIZE_DIFFERS: 1, CLIPPED: 1}
    assert "says 60x40" in caplog.text and "annotated lying on its side?" in caplog.text


def test_all_unusable_pictures_are_named_together(make_draft: MakeDraft) -> None:
    draft = make_draft(9, (0, (1, 1, 9, 9), "cat"))
    for path in draft.paths[1:]:
        Path(path).unlink()
    with pytest.raises(
        ValueError, match=r"8 problem\(s\) in 9 images\nunusable image \(8\): .*1\.jpg: no such .*and 5 more"
    ):
        finish(draft, classes=(), offset=0.0, strict=False)


def test_refuses_sets_without_images_or_classes(make_draft: MakeDraft) -> None:
    with pytest.raises(ValueError, match=r"train: the set in .* lists no image"):
        finish(make_draft(0), classes=("cat",), offset=0.0, strict=False)
    with pytest.raises(ValueError, match=r"no image of the set in .* has an object.*--data.classes"):
        finish(make_draft(2), classes=(), offset=0.0, strict=False)
    assert finish(make_draft(2), classes=("cat",), offset=0.0, strict=False).num_boxes.tolist() == [0, 0]


def test_crowds_are_ignored_and_keep_their_own_area(make_draft: MakeDraft) -> None:
    draft = make_draft(1)
    draft.add_object(0, 1, (0, 0, 10, 10), "cat", crowd=True, area=33.5)
    record = finish(draft, classes=(), offset=0.0, strict=True)[0]
    assert (record.ignore.tolist(), record.crowd.tolist(), record.areas.tolist()) == ([True], [True], [33.5])
    assert record.boxes.dtype == record.areas.dtype == np.float32


def test_class_names_come_once() -> None:
    assert check_classes(["b", "a"]) == ("b", "a")
    for names in (["a", "a"], ["a", " "]):
        with pytest.raises(ValueError, match=r"--data.classes: '.*' is empty or comes twice"):
            check_classes(names)
