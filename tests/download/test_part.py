import errno
import json
import os
from pathlib import Path

import pytest

from rcnn.download.part import Part

URL = "http://localhost/a.bin"


def write(target: Path, *blocks: bytes, start: int = 0, validator: str = '"1"') -> None:
    with Part(target) as part:
        part.begin(start, URL, validator)
        for block in blocks:
            part.write(block)


def test_definition_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    with Part(target) as part:
        part.begin(0, URL, '"1"')
        part.write(b"ab")
        part.write(b"c")
        assert part.size == 3 and not target.exists()
        assert part.path.read_bytes() == b"abc"
        part.finish()
    assert target.read_bytes() == b"abc"
    assert os.listdir(target.parent) == ["a.bin"]


def test_bytes_and_origin_stay_for_the_next_run(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", b"abc")
    with Part(tmp_path / "a.bin") as part:
        assert part.size == 3
        assert part.validator_from(URL) == '"1"'
        assert part.validator_from("http://localhost/mirror") is None
        part.begin(2, URL, '"2"')
        part.write(b"z")
        assert part.validator_from(URL) == '"2"'
        part.finish()
    assert (tmp_path / "a.bin").read_bytes() == b"abz"


@pytest.mark.parametrize("origin", [b"", b"{", b"[]", b"3", json.dumps({"url": URL}).encode(), b"\xff"])
def test_an_origin_that_cannot_be_read_is_none(tmp_path: Path, origin: bytes) -> None:
    write(tmp_path / "a.bin", b"abc")
    (tmp_path / "a.bin.part.json").write_bytes(origin)
    with Part(tmp_path / "a.bin") as part:
        assert part.validator_from(URL) is None


def test_nothing_is_left_of_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "a.bin")
    assert os.listdir(tmp_path) == []
    write(tmp_path / "a.bin", b"abc")
    with Part(tmp_path / "a.bin") as part:
        part.discard()
        assert part.size == 0
    assert os.listdir(tmp_path) == []


def test_an_interruption_keeps_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Part(tmp_path / "a.bin") as part:
        part.begin(0, URL, "")
        part.write(b"abc")
        raise KeyboardInterrupt
    assert (tmp_path / "a.bin.part").read_bytes() == b"abc"


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with Part(tmp_path / "a.bin"), pytest.raises(ValueError, match=r"a\.bin\.part: another rcnn download"):
        Part(tmp_path / "a.bin").__enter__()
    write(tmp_path / "a.bin", b"abc")
    assert (tmp_path / "a.bin.part").read_bytes() == b"abc"


def test_a_full_disk_says_what_is_kept(tmp_path: Path) -> None:
    class Full:
        def __init__(self, file):
            self.file, self.room = file, 2

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    words = r"a\.bin\.part: No space left.*its 2 bytes are kept.*again"
    with pytest.raises(OSError, match=words) as caught, Part(tmp_path / "a.bin") as part:
        part._file = Full(part._file)
        part.begin(0, URL, "")
        part.write(b"abcd")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a.bin.part").read_bytes() == b"ab"
