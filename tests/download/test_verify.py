import hashlib
from pathlib import Path

import pytest

from rcnn.download.catalogue import RemoteFile
from rcnn.download.verify import find_fault
from tests.download.server import Watcher

CONTENT = b"abc"
SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
MD5 = "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, appendix A.5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    "known",
    [{"sha256": SHA256}, {"sha256": SHA256[:8]}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5}, {}],
    ids=["sha256", "prefix", "md5", "both", "size"],
)
def test_definition_a_file_that_is_right(path: Path, watcher: Watcher, known: dict[str, str]) -> None:
    assert find_fault(path, RemoteFile("a.bin", (), 3, **known), watcher) == ""
    assert watcher.counts == [("checking a.bin", 0, 3), ("checking a.bin", 3, 3)]


def test_a_wrong_size_is_told_without_reading(path: Path, watcher: Watcher) -> None:
    fault = find_fault(path, RemoteFile("a.bin", (), 4, sha256=SHA256), watcher)
    assert fault == "it has 3 bytes, expected 4"
    assert watcher.counts == []


def test_wrong_digests_are_told(path: Path, watcher: Watcher) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    assert (
        find_fault(path, RemoteFile("a.bin", (), 3, sha256=other), watcher)
        == f"its sha256 is {SHA256}, expected {other}"
    )
    assert "expected 12345678" in find_fault(path, RemoteFile("a.bin", (), about=3, sha256="12345678"), watcher)
    assert "its md5 is" in find_fault(path, RemoteFile("a.bin", (), about=3, md5="0" * 32), watcher)


def test_without_a_digest_the_sha256_is_told(path: Path, watcher: Watcher) -> None:
    assert find_fault(path, RemoteFile("a.bin", (), about=3), watcher) == ""
    assert SHA256 in watcher.notes[0] and "nothing to compare" in watcher.notes[0]
