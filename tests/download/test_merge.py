import os
from pathlib import Path

import pytest

from rcnn.download.merge import merge


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_definition_files_move_beside_those_that_are_there(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"VOC/a.txt": "a", "VOC/new/b.txt": "b", "top.txt": "t"})
    target = write(tmp_path / "target", {"VOC/old.txt": "old", "other/c.txt": "c"})
    merge(source, target)
    wanted = {"VOC/a.txt": "a", "VOC/new/b.txt": "b", "top.txt": "t", "VOC/old.txt": "old", "other/c.txt": "c"}
    assert read(target) == wanted


def test_a_target_that_is_not_there(tmp_path: Path) -> None:
    merge(write(tmp_path / "source", {"a/b.txt": "b"}), tmp_path / "deep" / "target")
    assert read(tmp_path / "deep" / "target") == {"a/b.txt": "b"}


def test_equal_files_stay(tmp_path: Path) -> None:
    target = write(tmp_path / "target", {"a/b.txt": "same"})
    before = (target / "a" / "b.txt").stat().st_ino
    merge(write(tmp_path / "source", {"a/b.txt": "same", "a/c.txt": "c"}), target)
    assert read(target) == {"a/b.txt": "same", "a/c.txt": "c"}
    assert (target / "a" / "b.txt").stat().st_ino == before


@pytest.mark.parametrize("text", ["mine", "other length"])
def test_a_file_of_other_content_is_not_touched(tmp_path: Path, text: str) -> None:
    source = write(tmp_path / "source", {"a/a.txt": "a", "a/b.txt": "them"})
    target = write(tmp_path / "target", {"a/b.txt": text})
    with pytest.raises(ValueError, match=r"a/b\.txt: is there already.*nothing was changed\. Move it away"):
        merge(source, target)
    assert read(target) == {"a/b.txt": text}
    assert set(read(source)) == {"a/a.txt", "a/b.txt"}


def test_a_file_in_the_place_of_a_folder_and_the_reverse(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"a/b.txt": "b"})
    with pytest.raises(ValueError, match="one/a: is there already"):
        merge(source, write(tmp_path / "one", {"a": "file"}))
    with pytest.raises(ValueError, match=r"two/a/b\.txt: is there already"):
        merge(source, write(tmp_path / "two", {"a/b.txt/c": "c"}))


@pytest.mark.parametrize("to", ["outside", "nowhere"])
def test_links_are_not_followed(tmp_path: Path, to: str) -> None:
    source = write(tmp_path / "source", {"a/b.txt": "b"})
    outside = write(tmp_path / "outside", {"precious.txt": "p"})
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").symlink_to(tmp_path / to)
    with pytest.raises(ValueError, match="target/a: is a link"):
        merge(source, tmp_path / "target")
    assert read(outside) == {"precious.txt": "p"}
    (tmp_path / "target" / "a").unlink()
    (tmp_path / "target" / "a").mkdir()
    (tmp_path / "target" / "a" / "b.txt").symlink_to(outside / "precious.txt")
    with pytest.raises(ValueError, match=r"b\.txt: is a link"):
        merge(source, tmp_path / "target")
    assert read(outside) == {"precious.txt": "p"}


def test_an_interrupted_move_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {f"a/{i}.txt": str(i) for i in range(5)}
    target = write(tmp_path / "target", {"a/x.txt": "x"})
    rename, moved = os.rename, []

    def broken(*paths: object) -> None:
        moved.append(paths)
        if len(moved) == 3:
            raise OSError("killed")
        rename(*paths)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="killed"):
        merge(write(tmp_path / "source", contents), target)
    assert len(read(target)) == 3
    merge(write(tmp_path / "again", contents), target)
    assert read(target) == contents | {"a/x.txt": "x"}
