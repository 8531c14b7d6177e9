import struct

import cv2
import numpy as np
import pytest

from rcnn.data.headers import Header, ends_early, parse_header

PIXELS = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)


def encode(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, PIXELS, options)[1].tobytes()


def exif(orientation: int, order: str = "<", tag: int = 0x0112) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIHHHIHH", 42, 8, 1, tag, 3, 1, orientation, 0) + bytes(4)


def jpeg_with(segment: bytes, marker: int = 0xE1) -> bytes:
    jpeg = encode(".jpg")
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize("data", [encode(".jpg"), encode(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), encode(".png")])
def test_reads_the_size(data: bytes) -> None:
    assert parse_header(data) == Header(31, 47, 1)
    assert not ends_early(data) and not ends_early(data + bytes(100))


@pytest.mark.parametrize("order", ["<", ">"])
def test_reads_the_orientation(order: str) -> None:
    header = parse_header(jpeg_with(b"Exif\0\0" + exif(6, order)))
    assert header == Header(31, 47, 6) and header.size_seen == (47, 31)


def test_reads_the_orientation_of_png() -> None:
    png, content = encode(".png"), exif(8)
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + bytes(4)
    assert parse_header(png[:33] + chunk + png[33:]) == Header(31, 47, 8)


@pytest.mark.parametrize(
    "segment", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + exif(9), b"http:"]
)
def test_a_broken_or_other_segment_is_upright(segment: bytes) -> None:
    assert parse_header(jpeg_with(segment)) == Header(31, 47, 1)


@pytest.mark.parametrize("data", [b"", b"\xff", b"GIF89a" + bytes(100), b"\xff\xd8" + bytes(100), encode(".jpg")[:100]])
def test_says_none_when_it_cannot_tell(data: bytes) -> None:
    assert parse_header(data) is None


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_cut_is_noticed(suffix: str) -> None:
    whole = encode(suffix)
    assert all(ends_early(whole[:length]) for length in range(8, len(whole) - 1, 7))
    assert ends_early(whole[:-1]) and ends_early(whole[: len(whole) // 2] + bytes(len(whole) // 2))


def test_the_end_of_a_thumbnail_is_not_the_end() -> None:
    data = jpeg_with(b"Exif\0\0" + exif(1) + b"\xff\xd8 thumbnail \xff\xd9")
    assert not ends_early(data) and ends_early(data[:-2])
