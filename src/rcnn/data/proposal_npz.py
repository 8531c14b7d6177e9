"""Our own file of proposals: plain arrays in an .npz, which numpy reads without pickle, and we within bounds."""

import io
import json
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float32, Int64

from rcnn.atomic import replacing
from rcnn.data.records import refuse_repeated_ids

FORMAT = "rcnn-proposals-1"
TYPES = {"boxes": "f", "scores": "f", "num_boxes": "i", "image_ids": "Ui", "header": "U"}  # kinds of numpy dtype
AXES = {"boxes": 2, "header": 0}  # of an array, 1 where it is not said
MAX_RATIO, ALLOWANCE = 8, 1 << 20  # unpacked bytes for a byte of the file, and bytes besides
MAX_HEADER = 1 << 16  # characters of JSON
DIRECTORY_READ = 1 << 17  # bytes that zipfile may ask for at a time while it looks for its directory
NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>]?([fiU])(?:(?<=[fi])[48]|(?<=U)[1-9]\d{0,4}))',\s*"
    rb"'fortran_order':\s*(True|False),\s*'shape':\s*\(([\d, ]*)\),?\s*\}\s*"
)
ZIP_FAULTS = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, OSError, RuntimeError, KeyError, IndexError,
    OverflowError,
)  # fmt: skip


class ProposalFile(NamedTuple):
    """What a file of proposals holds, image by image, in the file's own order and pixel convention."""

    boxes: Float32[np.ndarray, "T 4"]  # x1 y1 x2 y2, original pixels
    scores: Float32[np.ndarray, "T"] | None  # None: the file has none, its boxes come best first
    num_boxes: Int64[np.ndarray, "N"]
    image_ids: Sequence[str | int] | np.ndarray | None  # None: the images of a set, in its order
    offset: float
    header: dict[str, Any]


def save_proposals(
    path: str | os.PathLike[str],
    image_ids: Sequence[str | int],
    boxes: Sequence[Float[np.ndarray, "_ 4"]],
    scores: Sequence[Float[np.ndarray, "_"]],
    *,
    offset: float,
    header: Mapping[str, Any],
) -> None:
    """Writes the proposals of each image to an .npz, which is replaced only by a whole file.

    `numpy.load(path, allow_pickle=False)` gives `boxes` (T, 4), `scores` (T,), `num_boxes` (N,), `image_ids` (N,) and
    `header`, a JSON text. The same input gives the same bytes.

    Args:
        boxes: x1 y1 x2 y2 of each image in original pixels, by `offset`.
        header: what else is to be known, such as method, set and model; values of JSON.

    Raises:
        ValueError: if the path does not end in .npz, the lists differ in length or an image comes twice.
        OSError: the file cannot be written; a former file is untouched.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"{path}: proposals are written as .npz; name the file so")
    assert offset in (0, 1), offset
    lengths = [len(each) for each in boxes]
    if not len(image_ids) == len(boxes) == len(scores) or lengths != [len(each) for each in scores]:
        raise ValueError(
            f"{path}: {len(image_ids)} image ids, boxes of {len(boxes)} and scores of {len(scores)} images, "
            f"{sum(lengths)} boxes and {sum(map(len, scores))} scores; give one score a box of every image"
        )
    refuse_repeated_ids(image_ids, os.fspath(path))
    text = json.dumps({**header, "format": FORMAT, "offset": float(offset)}, sort_keys=True)
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        _write(archive, "boxes", boxes, (sum(lengths), 4), np.float32)
        _write(archive, "scores", scores, (sum(lengths),), np.float32)
        for name, array in (
            ("num_boxes", np.array(lengths, np.int64)),
            ("image_ids", _id_array(image_ids)),
            ("header", np.array(text)),
        ):
            _write(archive, name, [array], array.shape, array.dtype)


def _write(
    archive: zipfile.ZipFile, name: str, parts: Sequence[np.ndarray], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> None:
    """An array of an .npz as numpy writes it, part by part, so that nothing is in memory twice."""
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, facts)
        for part in parts:
            member.write(np.asarray(part, dtype).tobytes())


def read_npz(path: str | os.PathLike[str]) -> ProposalFile:
    """The proposals of a file of `save_proposals`; it may have been compressed since.

    Nothing is allocated by what the file claims about itself: its arrays take no more than its bytes, or 8 times those
    if it is compressed.

    Raises:
        ValueError: naming the file, the array and what is wrong with it.
    """
    try:
        with _LimitedFile(path) as file:
            arrays = _read_arrays(file)
        return _checked(arrays)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _Damaged as error:
        raise ValueError(f"{path}: {error}; write it again with rcnn proposals, or copy it again") from error


class _Damaged(Exception):
    """Something is wrong with a file whose name is not known here."""


class _LimitedFile(io.FileIO):
    """A file that gives `limit` bytes at a time at most, and refuses to make room for more."""

    limit = DIRECTORY_READ

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit:
            raise ValueError(f"{size} bytes claimed, which are not there")
        return super().read(self.limit if size is None or size < 0 else size)


def _id_array(image_ids: Sequence[str | int]) -> np.ndarray:
    if all(isinstance(i, int) for i in image_ids):
        return np.array(image_ids, np.int64)
    return np.array([str(i) for i in image_ids])


def _read_arrays(file: _LimitedFile) -> dict[str, np.ndarray]:
    total, arrays, name = os.fstat(file.fileno()).st_size, {}, "the directory"
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive, total)
            file.limit = total
            for name, info in members.items():
                arrays[name] = _read_array(archive, name, info)
    except ZIP_FAULTS as error:
        raise _Damaged(f"is no sound .npz of proposals: {name}: {error}") from error
    return arrays


def _members(archive: zipfile.ZipFile, total: int) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    files = [info.filename for info in infos]
    if sorted(files) != sorted(f"{name}.npy" for name in TYPES):
        found = ", ".join(repr(name[:40]) for name in files[:8]) or "nothing"
        raise _Damaged(f"holds {found}; expected the arrays {', '.join(TYPES)}")
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Damaged(f"{info.filename}: compressed by method {info.compress_type}; only deflate is read")
    claimed = sum(info.file_size for info in infos)
    if claimed > MAX_RATIO * total + ALLOWANCE:
        raise _Damaged(f"claims to unpack to {claimed} bytes, more than {MAX_RATIO} times its own {total}")
    return {info.filename.removesuffix(".npy"): info for info in infos}


def _read_array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        assert isinstance(stream, zipfile.ZipExtFile)
        dtype, shape, fortran = _npy_header(name, stream)
        size = math.prod(shape) * dtype.itemsize
        if stream.tell() + size != info.file_size:
            raise _Damaged(f"{name}: an array of {shape} {dtype} claimed in {info.file_size} bytes")
        data = stream.read(size) + stream.read(1)  # beyond the end, so that the checksum is compared
        if len(data) != size:
            raise _Damaged(f"{name}: {len(data)} of {size} bytes are there")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _npy_header(name: str, stream: zipfile.ZipExtFile) -> tuple[np.dtype, tuple[int, ...], bool]:
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise _Damaged(f"{name}: is no array of numpy")
    length = int.from_bytes(stream.read(2 if magic[6] == 1 else 4), "little")
    text = stream.read(min(length, 1024))
    match = NPY_HEADER.fullmatch(text)
    shape = tuple(int(side) for side in match[4].split(b",") if side.strip()) if match else ()
    if not match or match[2].decode() not in TYPES[name] or len(shape) != AXES.get(name, 1):
        raise _Damaged(f"{name}: holds {text[:100]!r}, which is not expected")
    return np.dtype(match[1].decode()), shape, match[3] == b"True"


def _checked(arrays: dict[str, np.ndarray]) -> ProposalFile:
    boxes, scores, num_boxes, image_ids = (arrays[n] for n in ("boxes", "scores", "num_boxes", "image_ids"))
    for name in ("image_ids", "header"):
        _check_text(name, arrays[name])
    header = _parse_header(arrays["header"])
    fits = len(num_boxes) == 0 or 0 <= num_boxes.min() <= num_boxes.max() <= len(boxes)
    total = int(num_boxes.sum(dtype=np.int64)) if fits else -1
    if boxes.shape[1] != 4 or len(scores) != len(boxes) or len(image_ids) != len(num_boxes) or total != len(boxes):
        raise _Damaged(
            f"boxes {boxes.shape}, scores {scores.shape}, num_boxes {num_boxes.shape} and image_ids "
            f"{image_ids.shape} do not fit together, or the boxes are not {len(boxes)} by num_boxes"
        )
    with np.errstate(over="ignore"):  # an infinite box is dropped with a warning when it meets its image
        boxes, scores = boxes.astype(np.float32, copy=False), scores.astype(np.float32, copy=False)
    return ProposalFile(boxes, scores, num_boxes.astype(np.int64), image_ids, header["offset"], header)


def _check_text(name: str, array: np.ndarray) -> None:
    """Every character must be one of Unicode: numpy takes any four bytes, and fails later."""
    is_text = array.dtype.kind == "U" and array.size > 0
    if is_text and array.reshape(-1).view(f"{array.dtype.byteorder}u4").max() > 0x10FFFF:
        raise _Damaged(f"{name}: holds bytes that are no text")


def _parse_header(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.itemsize > 4 * MAX_HEADER:
        raise _Damaged(f"header: {array.dtype.itemsize // 4} characters, more than {MAX_HEADER}")
    try:
        header = json.loads(array.item())
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"header: is no JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Damaged(f"header: expected the format '{FORMAT}'")
    if header.get("offset") not in (0, 1):
        raise _Damaged("header: offset must be 0 (continuous) or 1 (inclusive pixels)")
    return {**header, "offset": float(header["offset"])}
