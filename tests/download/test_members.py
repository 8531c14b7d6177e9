import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcnn.download.members import damage_as_value_error, read_members
from tests.download.archives import odd_tar_member, write_any, write_tar, write_zip

CONTENTS = {"a/": b"", "a/one.txt": b"one", "a/two.txt": b"two" * 100_000}
KINDS = ["a.tar", "a.tgz", "a.tar.gz", "a.zip"]


def read(path: Path) -> dict[str, bytes]:
    with open(path, "rb") as stream:
        return {m.name: b"" if m.folder else b"".join(m.blocks()) for m in read_members(path, stream)}


@pytest.mark.parametrize("name", KINDS)
def test_definition_files_and_folders(tmp_path: Path, name: str) -> None:
    path = write_any(tmp_path / name, CONTENTS)
    assert {name.rstrip("/"): content for name, content in read(path).items()} == {
        name.rstrip("/"): content for name, content in CONTENTS.items()
    }
    with open(path, "rb") as stream:
        assert [(m.folder, m.size) for m in read_members(path, stream)] == [(True, 0), (False, 3), (False, 300_000)]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "a link to '/etc/passwd'"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
        (b"Z", "of type"),
    ],
)
def test_a_tar_of_something_else(tmp_path: Path, kind: bytes, words: str) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"a"}, odd_tar_member(kind, to="/etc/passwd"))
    with pytest.raises(ValueError, match=rf"'odd' is neither file nor folder, but {words}"):
        read(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_of_something_else(tmp_path: Path, kind: int) -> None:
    path = write_zip(tmp_path / "a.zip", {"a": b"a", "odd": b"/etc/passwd"}, {"odd": kind | 0o777})
    with pytest.raises(ValueError, match="'odd' is neither file nor folder"):
        read(path)


def test_a_zip_name_is_seen_as_it_is_written(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"good.txtX/../../bad": b"x"})
    path.write_bytes(path.read_bytes().replace(b"good.txtX", b"good.txt\0"))
    with open(path, "rb") as stream:
        assert [m.name for m in read_members(path, stream)] == ["good.txt\0/../../bad"]


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>", bytes(100), b"\x1f\x8b" + bytes(20)])
@pytest.mark.parametrize("name", KINDS)
def test_no_archives(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read(path)


@pytest.mark.parametrize("name", KINDS)
def test_archives_cut_off(tmp_path: Path, name: str) -> None:
    path = write_any(tmp_path / name, CONTENTS)
    whole = path.read_bytes()
    for size in (len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:size])
        if name == "a.tar" and size > 302_000:
            continue  # only the zeros at its end are missing
        with pytest.raises(ValueError, match="damaged"):
            read(path)


def test_encrypted_and_unknown_compression(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.txt": b"a" * 100})
    whole = path.read_bytes()
    flags, method = whole.index(b"PK\x01\x02") + 8, whole.index(b"PK\x01\x02") + 10
    for place, value in ((flags, 1), (method, 77)):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read(path)


@pytest.mark.parametrize("name", KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_property_damage_is_a_value_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = write_any(tmp_path / name, {"a/one.txt": b"one", "b.txt": b"two" * 500})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read(path)
    except ValueError:
        return
    assert all(isinstance(value, bytes) for value in found.values())


def test_errors_of_ours_keep_their_words() -> None:
    with pytest.raises(ValueError, match=r"^mine$"), damage_as_value_error():
        raise ValueError("mine")
    with pytest.raises(ValueError, match=r"^damaged \(EOFError\)$"), damage_as_value_error():
        raise EOFError
    with pytest.raises(KeyboardInterrupt), damage_as_value_error():
        raise KeyboardInterrupt
