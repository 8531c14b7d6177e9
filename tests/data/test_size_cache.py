import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.data import size_cache
from rcnn.data.size_cache import cached_sizes


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The files that were opened, with a cache of its own for sets of any size."""
    names: list[str] = []
    read = size_cache.read_sizes
    monkeypatch.setattr(size_cache, "read_sizes", lambda paths: [*map(names.append, paths)] and read(paths))
    monkeypatch.setattr(size_cache, "FEWEST", 1)
    monkeypatch.setenv("RCNN_CACHE", str(tmp_path / "cache"))
    return names


@pytest.fixture
def paths(tmp_path: Path, picture: Callable[..., Path]) -> list[str]:
    return [str(picture(tmp_path / f"{i}.jpg", 10 + i, 20)) for i in range(3)]


def test_the_second_time_no_file_is_opened(opened: list[str], paths: list[str]) -> None:
    first = cached_sizes(paths)
    assert first == [(10, 20), (11, 20), (12, 20)] and opened == paths
    opened.clear()
    assert cached_sizes(paths) == first and opened == []
    assert all(type(side) is int for size in cached_sizes(paths) for side in size)


def test_a_changed_file_is_noticed(opened: list[str], paths: list[str], picture: Callable[..., Path]) -> None:
    cached_sizes(paths)
    opened.clear()
    picture(Path(paths[1]), 33, 44)
    assert cached_sizes(paths)[1] == (33, 44) and opened == [paths[1]]
    opened.clear()
    os.utime(paths[2], ns=(5, 5))
    assert cached_sizes(paths)[2] == (12, 20) and opened == [paths[2]]


def test_bad_and_missing_files_are_looked_at_each_time(opened: list[str], paths: list[str]) -> None:
    Path(paths[0]).write_bytes(b"no picture")
    Path(paths[1]).unlink()
    for _ in range(2):
        opened.clear()
        sizes = cached_sizes(paths)
        assert isinstance(sizes[0], ValueError) and isinstance(sizes[1], ValueError) and sizes[2] == (12, 20)
        assert opened[:2] == paths[:2]
    assert opened == paths[:2]


def test_another_set_has_a_cache_of_its_own(opened: list[str], paths: list[str]) -> None:
    assert cached_sizes(paths) == cached_sizes(paths[::-1])[::-1]
    assert len(opened) == 6


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04 half", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_is_none(opened: list[str], paths: list[str], tmp_path: Path, junk: bytes) -> None:
    first = cached_sizes(paths)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(junk)
    assert cached_sizes(paths) == first and len(opened) == 6
    opened.clear()
    assert cached_sizes(paths) == first and opened == []


def test_a_cache_that_cannot_be_written_and_one_that_is_switched_off(
    opened: list[str], paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (str(tmp_path / "file" / "below"), ""):
        monkeypatch.setenv("RCNN_CACHE", folder)
        assert cached_sizes(paths) == cached_sizes(paths)
    assert len(opened) == 12 and not (tmp_path / "cache").exists()


def test_small_sets_are_not_remembered(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCNN_CACHE", str(tmp_path / "cache"))
    cached_sizes(paths)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("header", ["((((", "{'descr': '|O', 'fortran_order': False, 'shape': (9,), }"])
def test_a_damaged_cache_is_as_good_as_none(opened: list[str], paths: list[str], tmp_path: Path, header: str) -> None:
    first = cached_sizes(paths)
    (cache,) = (tmp_path / "cache").iterdir()
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    for content in (npy, b"no array"):
        with zipfile.ZipFile(cache, "w") as archive:
            archive.writestr("keys.npy", content)
            archive.writestr("sizes.npy", content)
        assert cached_sizes(paths) == first
