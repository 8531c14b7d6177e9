from pathlib import Path

import pytest

from rcnn.data.paths import existing_root, inside, list_names, read_text, split_sets, suggest


def test_root_must_be_a_folder(tmp_path: Path) -> None:
    assert existing_root(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match=r"absent: no such folder; --data.root"):
        existing_root(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: is a file, not a folder"):
        existing_root(tmp_path / "file")


def test_sets_are_joined_by_plus() -> None:
    assert split_sets("2007_trainval+2012_trainval") == ["2007_trainval", "2012_trainval"]
    for wrong, problem in (("a++b", "empty"), ("", "empty"), ("a+b+a", "'a' comes twice")):
        with pytest.raises(ValueError, match=problem):
            split_sets(wrong)


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "a..b/c..jpg", "...jpg"])
def test_paths_inside_pass(path: str) -> None:
    assert inside(path, where="x.json") == path


def test_backslashes_become_slashes() -> None:
    assert inside("a\\b.jpg", where="x.json") == "a/b.jpg"


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/..", "C:\\a.jpg", "\\\\host\\a", "a\\..\\b"]
)
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"x\.json: image 3: image path .* leads out"):
        inside(path, where="x.json: image 3")


def test_suggests_the_close_name() -> None:
    assert suggest("Persn", ["cat", "person"]) == "did you mean 'person'? known: cat, person"
    assert suggest("PERSON", ["cat", "person"]).startswith("did you mean 'person'?")
    assert suggest("qqq", ["cat"]) == "known: cat"
    assert suggest("qqq", []) == "known: none"


def test_lists_only_the_first_names() -> None:
    assert list_names([str(i) for i in range(100)]).endswith("22, 23, ... (100 in all)")


def test_reads_text_or_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path, what="list") == "abc"
    path.write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"x\.txt: is not UTF-8 text \(byte 2\)"):
        read_text(path, what="list")
    with pytest.raises(ValueError, match=r"y\.txt: no such list"):
        read_text(tmp_path / "y.txt", what="list")
