"""Size and EXIF orientation from the first bytes of a JPEG or PNG, and whether its last bytes are there."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BARE_MARKERS = frozenset([0x01, *range(0xD0, 0xD9)])  # without a length
SCAN_MARKER, EXIF_MARKER = 0xDA, 0xE1
ORIENTATION_TAG, SHORT = 0x0112, 3


class Header(NamedTuple):
    """What a file says of its picture before the pixels."""

    height: int  # as stored
    width: int
    orientation: int  # EXIF: 1 upright, 2-4 mirrored or upside down, 5-8 lying on its side

    @property
    def size_seen(self) -> tuple[int, int]:
        """Height and width once the orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def parse_header(data: bytes) -> Header | None:
    """The header of a JPEG or PNG; None for other formats, damaged files and if more bytes are needed."""
    if data.startswith(JPEG_START):
        return _parse_jpeg(data)
    if data.startswith(PNG_START) and data[12:16] == b"IHDR" and len(data) >= 24:
        return _parse_png(data)
    return None


def ends_early(data: bytes) -> bool:
    """Whether a whole JPEG or PNG file lacks its end; bytes after the end are allowed.

    Decoders differ: some return such a picture with its lower part grey, and OpenCV makes room for what a chunk of a
    PNG claims before it looks whether it is there.
    """
    if data.startswith(JPEG_START):
        scan = _find_scan(data)
        return scan < 0 or data.find(JPEG_END, scan) < 0
    return data.startswith(PNG_START) and not any(
        data[start - 4 : end + 4] == PNG_END for start, end in _png_chunks(data)
    )


def _parse_jpeg(data: bytes) -> Header | None:
    orientation = 1
    for marker, start, end in _jpeg_segments(data):
        if marker in FRAME_MARKERS and end <= len(data):
            height, width = struct.unpack(">HH", data[start + 1 : start + 5])
            return Header(height, width, orientation) if height and width else None
        if marker == EXIF_MARKER and data[start : start + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[start + 6 : end])
    return None


def _find_scan(data: bytes) -> int:
    return next((end for marker, _, end in _jpeg_segments(data) if marker == SCAN_MARKER), -1)


def _jpeg_segments(data: bytes):
    """Marker, start and end of the content of each segment up to the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in BARE_MARKERS:
            position += 2
        else:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            yield marker, position + 4, end
            if marker == SCAN_MARKER:
                return
            position = end


def _parse_png(data: bytes) -> Header | None:
    width, height = struct.unpack(">II", data[16:24])
    orientation = 1
    for start, end in _png_chunks(data):
        if data[start - 4 : start] == b"IDAT":
            break
        if data[start - 4 : start] == b"eXIf":
            orientation = _exif_orientation(data[start:end])
    return Header(height, width, orientation) if height and width else None


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the content of each chunk, which its name precedes and its checksum follows."""
    position = 8
    while position + 8 <= len(data):
        start, length = position + 8, int.from_bytes(data[position : position + 4], "big")
        yield start, start + length
        position = start + length + 4


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in a TIFF header's first directory; 1 if it is absent or makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION_TAG and kind == SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # offsets that lead out of the segment
        pass
    return 1
