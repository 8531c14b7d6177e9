"""Pictures from files: always (h, w, 3) RGB uint8, upright, whole; or an error that names the file."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os import SEEK_END, PathLike, fspath
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8

from rcnn.data.headers import JPEG_END, JPEG_START, PNG_END, Header, ends_early, parse_header

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
HEADER_BYTES = 16384  # enough but for a large EXIF thumbnail or colour profile before the size
MOST_PIXELS = 1 << 28  # of a JPEG or PNG, of which a few bytes may claim 2^32; OpenCV bounds the other formats
READERS = 8  # threads that wait for the disk together


def read_image(path: str | PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture as people see it: EXIF orientation applied, grey repeated, alpha left out, 16 bits cut to 8.

    Raises:
        ValueError: naming the file, if it cannot be read, is no picture, or ends early.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    return decode_image(data, name=fspath(path))


def decode_image(data: bytes, *, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the bytes of an image file; see `read_image`.

    Raises:
        ValueError: naming `name`.
    """
    _refuse_incomplete(data, name)
    header = _sized(parse_header(data), name)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{name}: cannot be decoded: {error.err}; replace the file or leave it out") from error
    if image is None:
        raise ValueError(
            f"{name}: is damaged, or no picture of a known format ({_first_bytes(data)}); save it again as JPEG or "
            f"PNG, or leave it out"
        )
    return upright(image, header.orientation) if header else image


def read_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Height and width as seen, from the header; finds missing and truncated files without decoding.

    Raises:
        ValueError: naming the file, as `read_image` would.
    """
    try:
        with open(path, "rb") as file:
            header = _sized(_header_of_complete(file), fspath(path))
            if header:
                return header.size_seen
            file.seek(0)
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_incomplete(data, fspath(path))
    header = _sized(parse_header(data), fspath(path))
    height, width = header.size_seen if header else decode_image(data, name=fspath(path)).shape[:2]
    return height, width


def read_sizes(paths: Iterable[str]) -> list[tuple[int, int] | ValueError]:
    """`read_size` of many files, several at a time; an error stands in the place of a bad file's size."""
    paths = list(paths)
    chunks = [paths[i : i + 256] for i in range(0, len(paths), 256)]
    with ThreadPoolExecutor(READERS) as pool:
        return [size for sizes in pool.map(_sizes_of_chunk, chunks) for size in sizes]


def upright(image: UInt8[np.ndarray, "h w c"], orientation: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Turns and mirrors a stored picture as its EXIF orientation (1..8) asks."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _sizes_of_chunk(paths: list[str]) -> list[tuple[int, int] | ValueError]:
    return [_size_or_error(path) for path in paths]


def _size_or_error(path: str) -> tuple[int, int] | ValueError:
    try:
        return read_size(path)
    except ValueError as error:
        return error


def _header_of_complete(file: BinaryIO) -> Header | None:
    """The header if it lies at the start and the file's last bytes are a proper end; else None."""
    start = file.read(HEADER_BYTES)
    end = JPEG_END if start.startswith(JPEG_START) else PNG_END
    if len(start) < HEADER_BYTES:
        return parse_header(start) if start.endswith(end) else None
    file.seek(-len(end), SEEK_END)
    return parse_header(start) if file.read() == end else None


def _sized(header: Header | None, name: str) -> Header | None:
    """The header, unless the picture would fill the memory."""
    if header and header.height * header.width > MOST_PIXELS:
        raise ValueError(
            f"{name}: claims {header.width} x {header.height} pixels, more than {MOST_PIXELS} are not read; make it "
            f"smaller, cut it into tiles, or leave it out"
        )
    return header


def _refuse_incomplete(data: bytes, name: str) -> None:
    if not data:
        raise ValueError(f"{name}: the file is empty; copy it again or leave it out")
    if ends_early(data):
        raise ValueError(f"{name}: the file ends early (truncated, {len(data)} bytes); copy it again or leave it out")


def _unreadable(path: str | PathLike[str], error: OSError) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{fspath(path)}: no such image file; check the path, or leave the image out of the set")
    return ValueError(f"{fspath(path)}: cannot be read: {error.strerror}")


def _first_bytes(data: bytes) -> str:
    return f"it begins with {data[:8]!r}"
