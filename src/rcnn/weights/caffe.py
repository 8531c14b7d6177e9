"""Caffe's .caffemodel files, and the layer names of VGG16 and py-faster-rcnn."""

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rcnn.weights import mxnet
from rcnn.weights.pixels import PixelRange

VARINT, I64, LEN, I32 = 0, 1, 2, 5  # wire types of protobuf
FIXED = {I64: 8, I32: 4}  # bytes of a value
MAX_AXES = 32  # Source: caffe's kMaxBlobAxes
MAX_ARRAYS, MAX_NAME = 1 << 13, 256  # an array costs its name and more, whatever few bytes claim it
# Fields of NetParameter and their wire types; other ones are passed over, but not at the start of a file.
NET_FIELDS = {1: LEN, 2: LEN, 3: LEN, 4: VARINT, 5: VARINT, 6: LEN, 7: VARINT, 8: LEN, 100: LEN}
LAYERS = {2: (4, 6), 100: (1, 7)}  # V1LayerParameter, LayerParameter: the fields of its name and of its blobs
LEGACY_SIDES, DATA, SHAPE, DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8  # fields of BlobProto
PARAMETERS = {"0": "weight", "1": "bias"}
LINEAR = ("fc6", "fc7", "cls_score", "bbox_pred")
CONVOLUTION = re.compile(r"conv[1-5]_[1-4]")
RPN = {"rpn_conv/3x3": "rpn_conv_3x3", "rpn_cls_score": "rpn_cls_score", "rpn_bbox_pred": "rpn_bbox_pred"}
DETECTOR_PIXELS = PixelRange((122.7717, 115.9465, 102.9801))  # Source: py-faster-rcnn's PIXEL_MEANS


def from_caffe(
    arrays: Mapping[str, np.ndarray], *, box_std: tuple[float, float, float, float] = mxnet.BOX_STD
) -> dict[str, Tensor]:
    """Caffe's arrays of VGG16 or py-faster-rcnn's VGG16 under our names as float32; other names stay as they are.

    The layouts are the same, fc6 (channel, row, column) included, but for the four sides that old files give to every
    array and the first convolution, which takes BGR. py-faster-rcnn's snapshots hold a box layer that gives plain
    deltas; it is divided by `box_std`, by which the model multiplies.

    Raises:
        ValueError: a box layer whose rows are not four for each class.
    """
    named = {}
    for key, array in arrays.items():
        layer, _, number = key.rpartition("/")
        parameter = PARAMETERS.get(number, "")
        name = _rename(layer, parameter) if parameter else None
        named[name or key] = _converted(layer, parameter, array, box_std) if name else array
    return mxnet.from_mxnet(named)


def pixel_range(arrays: Mapping[str, np.ndarray]) -> PixelRange:
    """The input that the network was trained on: py-faster-rcnn's mean is not that of the VGG authors."""
    return DETECTOR_PIXELS if {"bbox_pred/0", "rpn_bbox_pred/0"} & arrays.keys() else mxnet.VGG_PIXELS


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The blobs of a .caffemodel by the name of their layer and their number in it ("conv1_1/0").

    The file is mapped, and values that lie in one piece stay there: nothing is allocated by what it claims about
    itself. Arrays may be unaligned.

    Raises:
        ValueError: the file is damaged, or holds no weights.

    Source: caffe.proto, NetParameter; protobuf's encoding of the wire.
    """
    net = _Net(_map(path), str(path))
    arrays = net.arrays()
    if not arrays:
        raise ValueError(f"{path}: no layer with weights in it; a .caffemodel of the trained network is wanted")
    return arrays


def recognises(path: str | Path) -> bool:
    """Whether a file starts as a .caffemodel does: it has no magic number, so its fields up to a layer are judged."""
    try:
        net = _Net(_map(path), str(path))
        for field in net.fields(0, len(net.data)):
            if NET_FIELDS.get(field.number) != field.wire:
                return False
            if field.number in LAYERS:
                first = next(net.fields(field.start, field.stop), None)
                return first is not None and first.wire == LEN
    except ValueError:
        return False
    return False


def _rename(layer: str, parameter: str) -> str | None:
    """mx-rcnn's name; None for a layer that is not known."""
    known = layer in RPN or layer in LINEAR or CONVOLUTION.fullmatch(layer)
    return f"{RPN.get(layer, layer)}_{parameter}" if known else None


def _converted(layer: str, parameter: str, array: np.ndarray, box_std: tuple[float, float, float, float]) -> np.ndarray:
    axes = 1 if parameter == "bias" else 2 if layer in LINEAR else 4
    if array.ndim == 4 and set(array.shape[: 4 - axes]) <= {1}:  # old files: sides of 1 before the real ones
        array = array.reshape(array.shape[4 - axes :])
    if layer == "bbox_pred":
        return _normalised(f"{layer} ({parameter})", array, box_std)
    if layer == "conv1_1" and array.ndim == 4 and array.shape[1] == 3:
        return array[:, ::-1]
    return array


def _normalised(name: str, array: np.ndarray, box_std: tuple[float, float, float, float]) -> np.ndarray:
    if array.ndim == 0 or len(array) % 4:
        raise ValueError(f"{name} has the shape {array.shape}; expected four rows for each class")
    std = np.tile(np.asarray(box_std, np.float32), len(array) // 4)
    return array / std.reshape(-1, *[1] * (array.ndim - 1))


def _map(path: str | Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ValueError(f"{path}: cannot be read ({error})") from error


class _Field(NamedTuple):
    """A field of a message, or a run of fixed-size ones with the same number, each with its tag before it."""

    number: int
    wire: int
    start: int  # of the (first) value
    stop: int


class _Net:
    """A .caffemodel, whose messages are walked without ever leaving the one they lie in."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data = data
        self.path = path

    def arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for layer in self.fields(0, len(self.data)):
            if layer.number not in LAYERS:
                continue
            self.expect(layer, LEN)
            name, blobs = self.layer(layer)
            for i, blob in enumerate(blobs):
                if f"{name}/{i}" in found or len(found) >= MAX_ARRAYS:
                    raise self.error(blob.start, f"a second array {name}/{i}, or more than {MAX_ARRAYS}")
                found[f"{name}/{i}"] = self.blob(blob)
        return found

    def layer(self, layer: _Field) -> tuple[str, list[_Field]]:
        """The name of a layer and its blobs."""
        name_field, blob_field = LAYERS[layer.number]
        name, blobs = "", []
        for field in self.fields(layer.start, layer.stop):
            if field.number in (name_field, blob_field):
                self.expect(field, LEN)
            if field.number == name_field:
                name = self.text(field)
            elif field.number == blob_field:
                blobs.append(field)
            if len(blobs) > MAX_ARRAYS:
                raise self.error(field.start, f"more than {MAX_ARRAYS} arrays")
        return name, blobs

    def blob(self, blob: _Field) -> np.ndarray:
        shape = self.shape(blob)
        values = self.values(blob, DOUBLE_DATA, np.dtype("<f8"))
        if not len(values):
            values = self.values(blob, DATA, np.dtype("<f4"))
        if shape is None:
            return values
        try:
            if math.prod(shape) == len(values):
                return values.reshape(shape)
        except ValueError as error:  # no values, but sides beyond what numpy can count
            raise self.error(blob.start, f"an array of shape {shape}") from error
        raise self.error(blob.start, f"an array of shape {shape} with {len(values)} values")

    def shape(self, blob: _Field) -> tuple[int, ...] | None:
        """Sides of an array; None when the file says nothing of them."""
        legacy: dict[int, int] = {}
        sides: list[int] | None = None
        for field in self.fields(blob.start, blob.stop):
            if field.number in LEGACY_SIDES:
                self.expect(field, VARINT)
                legacy[field.number] = self.side(field.start)[0]
            elif field.number == SHAPE:
                self.expect(field, LEN)
                sides = (sides or []) + self.sides(field)
                self.refuse_axes(sides, field)
        if sides is None and legacy:
            sides = [legacy.get(number, 0) for number in LEGACY_SIDES]
        return None if sides is None else tuple(sides)

    def sides(self, shape: _Field) -> list[int]:
        sides: list[int] = []
        for field in self.fields(shape.start, shape.stop):
            if field.number != 1:
                continue
            self.expect(field, VARINT, LEN)
            position = field.start
            while position < field.stop:
                side, position = self.side(position, field.stop)
                sides.append(side)
                self.refuse_axes(sides, field)
        return sides

    def refuse_axes(self, sides: list[int], field: _Field) -> None:
        if len(sides) > MAX_AXES:
            raise self.error(field.start, f"an array of more than {MAX_AXES} axes")

    def side(self, position: int, stop: int | None = None) -> tuple[int, int]:
        value, after = self.varint(position, len(self.data) if stop is None else stop)
        if value >> 63:
            raise self.error(position, f"a negative side {value - (1 << 64)}")
        return value, after

    def values(self, blob: _Field, number: int, dtype: np.dtype) -> np.ndarray:
        """All values of a repeated number; only those that lie in several pieces are copied."""
        pieces = self.pieces(blob, number, dtype)
        first, second = next(pieces, np.empty(0, dtype)), next(pieces, None)
        if second is None:
            return first
        joined = np.empty(sum(len(piece) for piece in self.pieces(blob, number, dtype)), dtype)
        position = 0
        for piece in self.pieces(blob, number, dtype):  # a second walk: a list of pieces could be larger than the file
            joined[position : position + len(piece)] = piece
            position += len(piece)
        return joined

    def pieces(self, blob: _Field, number: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        size = dtype.itemsize
        for field in self.fields(blob.start, blob.stop):
            if field.number != number:
                continue
            self.expect(field, LEN, I64 if size == FIXED[I64] else I32)
            length = field.stop - field.start
            if field.wire != LEN:
                tagged = np.dtype([("tag", "u1"), ("value", dtype)])
                yield np.frombuffer(self.data, tagged, (length + 1) // (size + 1), field.start - 1)["value"]
            elif length % size:
                raise self.error(field.start, f"{length} bytes of numbers of {size} bytes")
            else:
                yield np.frombuffer(self.data, dtype, length // size, field.start)

    def fields(self, position: int, stop: int) -> Iterator[_Field]:
        """The fields of the message from `position` to `stop`; runs of fixed-size ones are one field."""
        while position < stop:
            tag, start = self.varint(position, stop)
            number, wire = tag >> 3, tag & 7
            if number == 0 or wire not in (VARINT, LEN, *FIXED):
                raise self.error(position, f"no field of a .caffemodel (number {number}, wire type {wire})")
            if wire == VARINT:
                end = self.varint(start, stop)[1]
            elif wire == LEN:
                length, start = self.varint(start, stop)
                end = start + length
            else:
                end = start + FIXED[wire]
            if end > stop:
                raise self.error(start, f"{end - start} bytes wanted, {stop - start} left")
            if wire in FIXED and start - position == 1:
                end = self.run_end(start, end, stop)
            position = end
            yield _Field(number, wire, start, end)

    def run_end(self, start: int, end: int, stop: int) -> int:
        """Where a run of fields of the same size with the same tag, the one byte before `start`, ends."""
        step, window = end - start + 1, 16
        tag = self.data[start - 1]
        while end + step <= stop:
            count = min(window, (stop - end) // step)
            tags = np.frombuffer(self.data, np.dtype((np.void, step)), count, end).view(np.uint8)[::step]
            other = np.flatnonzero(tags != tag)
            if len(other):
                return end + int(other[0]) * step
            end, window = end + count * step, min(2 * window, 1 << 16)
        return end

    def varint(self, position: int, stop: int) -> tuple[int, int]:
        """A number of 7 bits in each byte, and the position after it."""
        value = 0
        for i in range(10):
            if position + i >= stop:
                raise self.error(position, "a number that is cut off")
            byte = self.data[position + i]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value & (1 << 64) - 1, position + i + 1
        raise self.error(position, "a number of more than ten bytes")

    def text(self, field: _Field) -> str:
        if field.stop - field.start > MAX_NAME:
            raise self.error(field.start, f"a name of {field.stop - field.start} bytes")
        try:
            return self.data[field.start : field.stop].decode()
        except UnicodeDecodeError as error:
            raise self.error(field.start, "a name that is no text") from error

    def expect(self, field: _Field, *wires: int) -> None:
        if field.wire not in wires:
            raise self.error(field.start, f"field {field.number} in wire type {field.wire}, not {wires[0]}")

    def error(self, position: int, reason: str) -> ValueError:
        return ValueError(f"{self.path}: damaged at byte {position}: {reason}; copy or download it again")
