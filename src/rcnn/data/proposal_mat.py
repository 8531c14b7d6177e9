"""Selective search's .mat files: the small part of MATLAB's format 5 that they use, read within bounds."""

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float32

from rcnn.data.proposal_npz import ProposalFile

OFFSET = 1.0  # the boxes hold their last pixel
MIN_SIDE = 2  # of x2 - x1 and y2 - y1. Source: mx-rcnn's filter_small_boxes, which takes > 2 for the height
MAX_BOXES = 1 << 16  # of one image
MAX_RATIO = (
    64  # inflated bytes for a byte of the file; random boxes have 4, the same ones for every image 90 (measured)
)
MAX_GROWTH = 16  # bytes that we keep for a byte of the file
ALLOWANCE = 1 << 18  # bytes besides, for small files
CHUNK = 1 << 16  # bytes inflated at a time
FILE_HEADER, TAG, BOX = 128, 8, 16  # bytes
HDF5 = b"\x89HDF\r\n\x1a\n"
# Types of data and classes of arrays. Source: MathWorks, MAT-File Format, tables 1-1 and 1-3
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
INT32, UINT32, MATRIX, COMPRESSED = 5, 6, 14, 15
CELL, CHAR, DOUBLE = 1, 4, 6
NUMERIC = range(DOUBLE, 16)  # double, single and the integers
COMPLEX = 0x800
TOO_MUCH = f"more than {MAX_GROWTH} times as many bytes to keep as the file has, which is not safe to read"
UNPACKED = "save it unpacked (save -v6 in MATLAB, do_compression=False in scipy)"
MAX_AXES, MAX_NAME, MAX_ID = 32, 256, 1024


def read_mat(path: str | os.PathLike[str]) -> ProposalFile:
    """The proposals of a file with a cell `boxes`, an image each: (n, 4) rows y1 x1 y2 x2, 1-based and inclusive.

    They become x1 y1 x2 y2, 0-based and inclusive (offset 1). Of equal boxes of an image the first stays, and boxes
    with x2 - x1 < 2 or y2 - y1 < 2 go. A cell `images`, if there is one, names the images. There are no scores: the
    boxes come best first.

    The file must be of MATLAB's format 5 (save -v6, save -v7, scipy.io.savemat). What is allocated is bounded by its
    own bytes, in compressed files by 64 of them unpacked and 16 kept for each.

    Raises:
        ValueError: naming the file, the byte and what is wrong there.

    Source: mx-rcnn, PascalVOC.load_selective_search_roidb. Differs: one smallest side for width and height; boxes are
    compared themselves, not by a hash in which coordinates above 1000 collide.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, os.fspath(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


class _Source:
    """The bytes of a file from `start` to `stop`, taken in order and never more than there are."""

    def __init__(self, file: BinaryIO, path: str, start: int, stop: int, order: str) -> None:
        self.file, self.path, self.order = file, path, order
        self.start, self.size, self.position = start, stop - start, 0
        file.seek(start)

    def take(self, size: int) -> bytes | bytearray:
        """The next `size` bytes."""
        if size > self.size - self.position:
            self.fail(f"{size} bytes wanted, {self.size - self.position} left")
        data = self.file.read(size)
        if len(data) != size:
            self.fail("the file was cut off while it was read")
        self.position += size
        return data

    def number(self) -> int:
        """The next four bytes as an unsigned number."""
        return struct.unpack(f"{self.order}I", self.take(4))[0]

    def go_to(self, position: int) -> None:
        """Passes over the bytes before `position`, which must not be behind."""
        if position < self.position:
            self.fail(f"an array that should have ended {self.position - position} bytes before")
        while self.position < position:
            self.take(min(CHUNK, position - self.position))

    def finish(self) -> None:
        """Nothing may be left."""
        if self.position != self.size:
            self.fail(f"{self.size - self.position} bytes left behind the array")

    def where(self) -> str:
        """The place of the next byte, for messages."""
        return f"byte {self.start + self.position}"

    def fail(self, reason: str, way_out: str = "correct the file, or copy it again") -> NoReturn:
        """Says what is wrong at this place."""
        raise ValueError(f"{self.path}: {self.where()}: {reason}; {way_out}")


class _Inflated(_Source):
    """What a deflated part of a file unpacks to, unpacked as it is taken."""

    def __init__(self, packed: _Source) -> None:
        super().__init__(packed.file, packed.path, packed.start, packed.start + packed.size, packed.order)
        self._packed, self._inflate = packed, zlib.decompressobj()
        self._piece, self._taken = b"", 0  # unpacked last, and how much of it is gone

    def take(self, size: int) -> bytes | bytearray:
        if self.position + size > MAX_RATIO * self.size + ALLOWANCE:
            self.fail(f"unpacks to more than {MAX_RATIO} times its size, which is not safe to read", UNPACKED)
        data = bytearray()
        while len(data) < size:
            if self._taken == len(self._piece):
                self._piece, self._taken = self._unpack(), 0
                if not self._piece:
                    self.fail(f"{size} bytes wanted, {len(data)} left")
            more = self._piece[self._taken : self._taken + size - len(data)]
            self._taken += len(more)
            data += more
        self.position += size
        return data

    def finish(self) -> None:
        if self._taken < len(self._piece) or self._unpack():
            self.fail("more bytes behind the array")

    def where(self) -> str:
        return f"byte {self.start}, unpacked byte {self.position}"

    def _unpack(self) -> bytes:
        """The next piece; empty at the end, where the checksum is compared."""
        while not self._inflate.eof:
            packed = self._packed
            fresh = self._inflate.unconsumed_tail or packed.take(min(CHUNK, packed.size - packed.position))
            try:
                piece = self._inflate.decompress(fresh, CHUNK)
            except zlib.error as error:
                self.fail(f"cannot be unpacked ({error})")
            if piece:
                return piece
            if not fresh and not self._inflate.eof:
                self.fail("the packed bytes end too early")
        return b""


class _Array(NamedTuple):
    """What stands before the values of an array."""

    kind: int  # class; CELL, CHAR or one of NUMERIC are read
    is_complex: bool
    sides: tuple[int, ...]
    name: str
    stop: int  # position after the values

    def __str__(self) -> str:
        kinds = {CELL: "cell", CHAR: "text", 2: "struct", 3: "object", 5: "sparse matrix"}
        kind = kinds.get(self.kind, "matrix" if self.kind in NUMERIC else f"array of class {self.kind}")
        return f"a {'complex ' if self.is_complex else ''}{kind} of {'x'.join(map(str, self.sides))}"


def _read(file: BinaryIO, path: str) -> ProposalFile:
    size = os.fstat(file.fileno()).st_size
    most = MAX_GROWTH * size + ALLOWANCE
    boxes, counts, names = bytearray(), None, None
    for source, variable in _variables(file, path, size):
        if variable.name == "boxes" and counts is None:
            counts = _read_boxes(source, variable, boxes, most)
        elif variable.name == "images" and names is None:
            names = _read_names(source, variable, most)
        elif variable.name in ("boxes", "images"):
            source.fail(f"a second variable '{variable.name}'")
    if counts is None:
        raise ValueError(f"{path}: no variable 'boxes' in it; it should be a cell with the boxes of an image each")
    if names is not None and len(names) != len(counts):
        raise ValueError(f"{path}: 'images' names {len(names)} images, 'boxes' has {len(counts)}; they must agree")
    table = np.frombuffer(boxes, np.float32).reshape(-1, 4)
    return ProposalFile(table, None, np.array(counts, np.int64), names, OFFSET, {})


def _variables(file: BinaryIO, path: str, size: int) -> Iterator[tuple[_Source, _Array]]:
    """What stands before the values of each variable, and where its values come from."""
    order, position = _byte_order(path, file.read(FILE_HEADER)), FILE_HEADER
    while position < size:
        tag = _Source(file, path, position, size, order)
        kind, length = tag.number(), tag.number()
        start, position = position + TAG, position + TAG + length
        if position > size or kind not in (MATRIX, COMPRESSED):
            tag.fail(f"a part of {length} bytes and type {kind}, of which {size - start} are there")
        if kind == COMPRESSED:
            source = _Inflated(_Source(file, path, start, position, order))
        else:
            source = _Source(file, path, start - TAG, position, order)
        yield source, _start_array(source)


def _byte_order(path: str, header: bytes) -> str:
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    version = struct.unpack(f"{order}H", header[124:126])[0] if order else 0
    if header.startswith((HDF5, b"MATLAB 7.3")) or version == 0x200:
        raise ValueError(f"{path}: is of MATLAB 7.3 (HDF5), which is not read; save it with save(..., '-v7')")
    if version != 0x100:
        raise ValueError(f"{path}: is no MATLAB file of format 5; write it with save(..., '-v7') or scipy.io.savemat")
    return order or "<"


def _read_boxes(source: _Source, variable: _Array, boxes: bytearray, most: int) -> array:
    """Adds the boxes of every cell to `boxes`, which may take `most` bytes; returns their numbers."""
    counts = array("q")
    for _ in range(_cells(source, variable)):
        room = most - len(boxes) - BOX * len(counts)
        found = _image_boxes(source, room)
        boxes += found.tobytes()
        counts.append(len(found))
    source.go_to(variable.stop)
    source.finish()
    return counts


def _read_names(source: _Source, variable: _Array, most: int) -> list[str]:
    names, size = [], 0
    for _ in range(_cells(source, variable)):
        names.append(_text(source))
        size += sys.getsizeof(names[-1])
        if size > most:
            source.fail(TOO_MUCH, UNPACKED)
    source.go_to(variable.stop)
    source.finish()
    return names


def _cells(source: _Source, variable: _Array) -> int:
    if variable.kind != CELL or len(variable.sides) != 2 or min(variable.sides) > 1:
        source.fail(f"'{variable.name}' is {variable}, not a cell of one row or column, an image each")
    return variable.sides[0] * variable.sides[1]


def _image_boxes(source: _Source, room: int) -> Float32[np.ndarray, "n 4"]:
    """The boxes of the cell that starts here, which may take `room` bytes."""
    matrix = _start_array(source)
    if room < 0:
        source.fail(TOO_MUCH, UNPACKED)
    if 0 in matrix.sides:
        source.go_to(matrix.stop)
        return np.zeros((0, 4), np.float32)
    if matrix.kind not in NUMERIC or matrix.is_complex or len(matrix.sides) != 2 or matrix.sides[1] != 4:
        source.fail(f"boxes of an image are {matrix}; expected a matrix of 4 columns, y1 x1 y2 x2")
    rows = matrix.sides[0]
    if rows > MAX_BOXES:
        source.fail(f"{rows} boxes of an image, more than {MAX_BOXES}; keep the best thousands")
    kind, data = _part(source, 32 * rows)
    if BOX * rows > room:
        source.fail(TOO_MUCH, UNPACKED)
    if kind not in NUMBERS or len(data) != 4 * rows * np.dtype(NUMBERS[kind]).itemsize:
        source.fail(f"{len(data)} bytes of type {kind} for {matrix}")
    source.go_to(matrix.stop)
    columns = np.frombuffer(data, source.order + NUMBERS[kind]).reshape(4, rows)
    boxes = np.empty((rows, 4), np.float32)
    with np.errstate(over="ignore"):  # an infinite box is dropped with a warning when it meets its image
        for place, column in enumerate((1, 0, 3, 2)):
            boxes[:, place] = columns[column]
    boxes -= 1
    return _without_repeated(_without_small(boxes))


def _without_small(boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "_ 4"]:
    """Boxes that are inside out stay: they are counted and told when they meet their image."""
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
    return boxes[~((sides >= 0) & (sides < MIN_SIDE)).any(1)]


def _without_repeated(boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "_ 4"]:
    """The first of equal boxes, in the order they had."""
    order = np.lexsort(boxes.T)
    ordered = boxes[order]
    is_first = np.ones(len(boxes), np.bool_)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return boxes[np.sort(order[is_first])]


def _text(source: _Source) -> str:
    """The text of the cell that starts here."""
    text = _start_array(source)
    if text.kind != CHAR or len(text.sides) != 2 or text.sides[0] != 1:
        source.fail(f"'images' holds {text}; expected one line of text, an image's name")
    kind, data = _part(source, 4 * MAX_ID)
    source.go_to(text.stop)
    suffix = {"<": "-le", ">": "-be"}[source.order] if kind in (4, 17, 18) else ""
    try:
        return bytes(data).decode(TEXTS[kind] + suffix)
    except (KeyError, UnicodeDecodeError):
        source.fail(f"an image's name of type {kind} that is no text")


def _start_array(source: _Source) -> _Array:
    """Reads what stands before the values of the array that starts here."""
    kind, size = source.number(), source.number()
    stop = source.position + size
    if kind != MATRIX:
        source.fail(f"type {kind} where an array should start")
    if size == 0:  # as MATLAB writes []
        return _Array(DOUBLE, False, (0, 0), "", stop)
    flags = _numbers(source, UINT32, 2)
    sides = _numbers(source, INT32, MAX_AXES)
    _, name = _part(source, MAX_NAME)
    if len(flags) != 2 or len(sides) < 2 or min(sides) < 0 or source.position > stop:
        source.fail(f"an array of sides {sides} in {size} bytes")
    return _Array(flags[0] & 0xFF, bool(flags[0] & COMPLEX), sides, name.decode("latin-1"), stop)


def _numbers(source: _Source, expected: int, most: int) -> tuple[int, ...]:
    kind, data = _part(source, 4 * most)
    if kind != expected:
        source.fail(f"type {kind} where type {expected} should be")
    return struct.unpack(f"{source.order}{len(data) // 4}{'i' if kind == INT32 else 'I'}", data[: len(data) // 4 * 4])


def _part(source: _Source, most: int) -> tuple[int, bytes | bytearray]:
    """Type and bytes of the part of an array that starts here, of `most` bytes, and what fills it up to eight."""
    kind = source.number()
    short = kind >> 16  # up to four bytes stand in the tag itself
    size = short or source.number()
    if size > most or short > 4:
        source.fail(f"{size} bytes where at most {most} should be")
    data = source.take(size)
    source.take(4 - size if short else -size % 8)
    return kind & 0xFFFF, data
