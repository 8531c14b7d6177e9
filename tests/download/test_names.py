from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.download import names as module
from rcnn.download.names import Names

PIECES = st.sampled_from(
    ["..", ".", "", "a", "A", "b", "é", "e\u0301", "\0", "\\", ":", "C:", "\n", " ", "~", "...", "ß", "\udcff"]
)


def test_definition_clean_names() -> None:
    names = Names()
    assert names.accept("VOCdevkit/", folder=True) == "VOCdevkit"
    assert names.accept("VOCdevkit/VOC2007/a.jpg", folder=False) == "VOCdevkit/VOC2007/a.jpg"
    assert names.accept("./", folder=True) == ""
    assert names.accept("./b//c.txt", folder=False) == "b/c.txt"
    assert names.accept("..a/b..", folder=False) == "..a/b.."
    assert names.accept("VOCdevkit/VOC2007", folder=True) == "VOCdevkit/VOC2007"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a", "a/../b", "a/..", "..", "C:/a", "c:a", "a\\..\\b", "\\\\server\\a", "a:stream", "a\0.txt"],
)
def test_names_that_lead_out(name: str) -> None:
    with pytest.raises(ValueError, match="leads out of its folder"):
        Names().accept(name, folder=False)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\x7f", "\udcff.jpg"])
def test_names_that_cannot_be_printed(name: str) -> None:
    with pytest.raises(ValueError, match="no printable name"):
        Names().accept(name, folder=False)


@pytest.mark.parametrize("name", ["", ".", "./", "./."])
def test_no_name_for_a_file(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a file"):
        Names().accept(name, folder=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "a"), ("a", "A"), ("x/a", "X/A"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301"), ("straße", "STRASSE")],
)
def test_names_that_are_taken(first: str, second: str) -> None:
    names = Names()
    names.accept(first, folder=False)
    with pytest.raises(ValueError, match="comes twice"):
        names.accept(second, folder=False)


def test_a_folder_in_the_place_of_a_file() -> None:
    names = Names()
    names.accept("a", folder=False)
    with pytest.raises(ValueError, match="comes twice"):
        names.accept("a/", folder=True)


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    names = Names()
    names.accept("a", folder=False)
    names.accept("b", folder=False)
    with pytest.raises(ValueError, match="more than 2 members"):
        names.accept("c", folder=False)


@given(st.lists(st.tuples(st.lists(PIECES, min_size=1, max_size=4).map("/".join), st.booleans()), max_size=8))
def test_property_what_is_accepted_stays_inside_and_is_there_once(members: list[tuple[str, bool]]) -> None:
    names, files, folders = Names(), set(), set()
    for name, folder in members:
        try:
            path = names.accept(name, folder=folder)
        except ValueError:
            continue
        parts = PurePosixPath(path).parts
        assert not path.startswith("/") and not {"..", "."} & set(parts) and not set("\\:\0\n") & set(path)
        assert folder or path.casefold() not in files
        (folders if folder else files).add(path.casefold())
        folders |= {"/".join(parts[:end]).casefold() for end in range(1, len(parts))}
    assert not files & folders
