import errno
import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcnn.download import unpack as module
from rcnn.download.unpack import unpack
from tests.download.archives import odd_tar_member, write_any, write_tar, write_zip
from tests.download.server import Watcher

CONTENTS = {"VOCdevkit/": b"", "VOCdevkit/VOC2007/a.txt": b"one", "VOCdevkit/VOC2007/b.jpg": b"two" * 100_000}
KINDS = ["a.tar", "a.tgz", "a.zip"]
HOSTILE = ["/absolute.txt", "../outside.txt", "a/../../outside.txt", "a\\..\\..\\outside.txt", "C:/outside.txt", "a\nb"]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder in which there is nothing but what a test puts there."""
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


def refusal(archive: Path, room: Path, watcher: Watcher) -> str:
    """The message; nothing may be written."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ValueError) as caught:
        unpack(archive, room / "new", watcher)
    assert sorted(archive.parent.rglob("*")) == before
    assert str(archive) in str(caught.value) and "nothing was unpacked. Delete it" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_definition_files_with_plain_permissions(tmp_path: Path, room: Path, watcher: Watcher, name: str) -> None:
    (room / "plain").write_bytes(b"")
    unpack(write_any(tmp_path / name, CONTENTS), room / "new", watcher)
    assert files(room / "new") == {k: v for k, v in CONTENTS.items() if not k.endswith("/")}
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (room / "new").rglob("*") if p.is_file()}
    assert modes == {stat.S_IMODE((room / "plain").stat().st_mode)}
    size = (tmp_path / name).stat().st_size
    assert watcher.counts[-1] == (f"unpacking {name}", size, size)
    assert all(0 <= done <= size for _, done, _ in watcher.counts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out(tmp_path: Path, room: Path, watcher: Watcher, name: str, kind: str) -> None:
    archive = write_any(tmp_path / kind, {"good.txt": b"good", name: b"bad"})
    assert repr(name) in refusal(archive, room, watcher)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path: Path, room: Path, watcher: Watcher, kind: bytes) -> None:
    archive = write_tar(tmp_path / "a.tar", {"good.txt": b"good"}, odd_tar_member(kind, "odd", "../.."))
    assert "'odd' is neither file nor folder" in refusal(archive, room, watcher)


def test_a_file_through_a_link(tmp_path: Path, room: Path, watcher: Watcher) -> None:
    info = tarfile.TarInfo("link/bad.txt")
    archive = write_tar(tmp_path / "a.tar", {}, odd_tar_member(tarfile.SYMTYPE, "link", str(tmp_path)), info)
    refusal(archive, room, watcher)
    assert not (tmp_path / "bad.txt").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_differ_in_case(tmp_path: Path, room: Path, watcher: Watcher, kind: str) -> None:
    archive = write_any(tmp_path / kind, {"a/readme": b"1", "A/README": b"2"})
    assert "comes twice" in refusal(archive, room, watcher)


@pytest.mark.parametrize("kind", ["a.tgz", "a.zip"])
def test_an_archive_that_expands_too_far(
    tmp_path: Path, room: Path, watcher: Watcher, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 1000)
    archive = write_any(tmp_path / kind, {f"{i}.txt": bytes(100_000) for i in range(20)})
    assert archive.stat().st_size * module.MOST_EXPANSION < 20 * 100_000
    assert "which is no data set but a trap" in refusal(archive, room, watcher)


def test_a_zip_that_lies_about_a_size(tmp_path: Path, room: Path, watcher: Watcher) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a.txt": b"0123456789" * 100})
    whole = archive.read_bytes()
    for lie in (10, 100_000):
        archive.write_bytes(whole.replace((1000).to_bytes(4, "little"), lie.to_bytes(4, "little")))
        assert "damaged" in refusal(archive, room, watcher)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives(tmp_path: Path, room: Path, watcher: Watcher, kind: str) -> None:
    archive = write_any(tmp_path / kind, CONTENTS)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    assert "damaged" in refusal(archive, room, watcher)


def test_an_interruption_leaves_nothing(tmp_path: Path, room: Path) -> None:
    class Impatient(Watcher):
        def count(self, what: str, done: int, total: int | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(write_any(tmp_path / "a.zip", CONTENTS), room / "new", Impatient())
    assert os.listdir(room) == []


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, room: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = write_any(tmp_path / "a.tar", {"a/b/c.txt": b"one"})
    unpack(archive, room / "first", watcher)
    monkeypatch.setattr(module._Unpacking, "spend", full)
    with pytest.raises(OSError, match=r"cannot unpack .*a\.tar: No space left.*make room"):
        unpack(archive, room / "second", watcher)
    assert os.listdir(room) == ["first"]


@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.lists(st.sampled_from(["..", ".", "", "a", "A", "b", "~", "\\", "C:"]), min_size=1, max_size=4).map(
            "/".join
        ),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_property_nothing_is_written_outside(tmp_path: Path, kind: str, names: list[str]) -> None:
    archive = write_any(tmp_path / kind, {name: b"x" for name in names})
    before = {p for p in tmp_path.rglob("*") if "new" not in p.parts}
    try:
        unpack(archive, tmp_path / "new", Watcher())
        assert len(files(tmp_path / "new")) <= len(names)
        for path in sorted((tmp_path / "new").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "new").rmdir()
    except ValueError:
        assert not (tmp_path / "new").exists()
    assert {p for p in tmp_path.rglob("*") if "new" not in p.parts} == before
