from pathlib import Path

import pytest

from rcnn.benchmark import pictures
from rcnn.benchmark.pictures import find_pictures, make_pictures, open_table, open_tasks
from rcnn.data.images import read_size
from tests.benchmark.small import settings


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST", 3)
    monkeypatch.setattr(pictures, "SIZE", (30, 40))


def test_tasks_on_pictures_made_up() -> None:
    tasks = open_tasks(settings("data", batch=2))
    assert {name: task.images for name, task in tasks.items()} == {
        "decode": 3,
        "decode and resize": 3,
        "loader, in this process": 4,
    }
    assert [image.shape for image in tasks["decode"].run()] == [(30, 40, 3)] * 3
    assert [image.shape for image in tasks["decode and resize"].run()] == [(60, 80, 3)] * 3
    first, second = tasks["loader, in this process"].run(), tasks["loader, in this process"].run()
    assert [len(batch.images) for batch in first + second] == [2] * 4  # goes on into the next epoch


def test_pictures_of_a_folder_and_its_folders(tmp_path: Path) -> None:
    for name, made in zip(("b.jpg", "a/c.jpeg", "a/d.JPG"), make_pictures(3), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(Path(made).read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    assert [Path(path).name for path in find_pictures(str(tmp_path))] == ["c.jpeg", "d.JPG", "b.jpg"]
    table = open_table(find_pictures(str(tmp_path)))
    assert table.sizes.tolist() == [[30, 40]] * 3 and not table.num_boxes.any()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data-root .*: no pictures there"):
        find_pictures(str(tmp_path))


def test_made_pictures_have_the_size_they_should() -> None:
    assert {read_size(path) for path in make_pictures(2)} == {(30, 40)}
