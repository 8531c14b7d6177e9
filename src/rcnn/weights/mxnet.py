"""MXNet's .params files and the parameter names of mx-rcnn."""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rcnn.weights.pixels import PixelRange

LIST_MAGIC = 0x112  # first eight bytes of every file
# First four bytes of an array; any other value is the number of axes of the format before versions.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0  # storage type
MAX_AXES = 32
MAX_ARRAYS = 1 << 13  # an array costs more memory than the few bytes that can claim one
BFLOAT16 = 12
DTYPES = {  # Source: mshadow's TypeFlag
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
    7: np.dtype("?"),
    8: np.dtype("<i2"),
    9: np.dtype("<u2"),
    10: np.dtype("<u4"),
    11: np.dtype("<u8"),
    BFLOAT16: np.dtype("<u2"),  # widened to float32 when read
}
BOX_STD = (0.1, 0.1, 0.2, 0.2)  # of mx-rcnn's box targets
VGG_PIXELS = PixelRange((123.68, 116.779, 103.939))
RESNET_PIXELS = PixelRange((0.0, 0.0, 0.0))


def _rename_table() -> dict[str, str]:
    convolutions = {f"conv{s}_{i}": f"backbone.conv{s}_{i}" for s, n in enumerate((2, 2, 4, 4, 4), 1) for i in _to(n)}
    heads = {"rpn_conv_3x3": "rpn.conv", "rpn_cls_score": "rpn.cls", "rpn_bbox_pred": "rpn.box"}
    heads |= {name: f"head.{name}" for name in ("fc6", "fc7", "cls_score", "bbox_pred")}
    weights, norms = {"conv0": "backbone.conv0"}, {"bn1": "head.bn1"}
    norms |= {name: f"backbone.{name}" for name in ("bn_data", "bn0")}
    for stage, units in enumerate((3, 8, 36, 3), 1):  # of ResNet-152, the longest
        owner = "head" if stage == 4 else "backbone"
        for theirs, ours in ((f"stage{stage}_unit{u}", f"{owner}.stage{stage}_unit{u}") for u in _to(units)):
            weights |= {f"{theirs}_{layer}": f"{ours}.{layer}" for layer in ("conv1", "conv2", "conv3", "sc")}
            norms |= {f"{theirs}_{layer}": f"{ours}.{layer}" for layer in ("bn1", "bn2", "bn3")}
    return (
        _with_parameters(convolutions | heads, {"weight": "weight", "bias": "bias"})
        | _with_parameters(weights, {"weight": "weight"})
        | _with_parameters(
            norms, {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
        )
    )


def _to(last: int) -> range:
    return range(1, last + 1)


def _with_parameters(layers: Mapping[str, str], parameters: Mapping[str, str]) -> dict[str, str]:
    return {f"{a}_{p}": f"{b}.{q}" for a, b in layers.items() for p, q in parameters.items()}


# mx-rcnn's name -> ours, for VGG16 (and VGG19, so that it is told from VGG16) and the pre-activation ResNets.
RENAME = _rename_table()
RENAME_BACK = {ours: theirs for theirs, ours in RENAME.items()}


def from_mxnet(
    arrays: Mapping[str, np.ndarray], *, box_std: tuple[float, float, float, float] = BOX_STD
) -> dict[str, Tensor]:
    """mx-rcnn's arrays under our names, floating ones as float32; names that are not in RENAME stay as they are.

    The layouts are the same, fc6 (channel, row, column) included. Of v5's two versions of the box layer the one for
    testing (`bbox_pred_weight_test`) is taken and divided by `box_std`, by which the model multiplies: that is right
    where each class had its own mean and deviation too. bn_data's gamma is 1 whatever is stored (`fix_gamma`).

    Raises:
        ValueError: a box layer whose rows are not four for each class.
    """
    plain = {name.removeprefix("arg:").removeprefix("aux:"): array for name, array in arrays.items()}
    for name in [name for name in plain if name.startswith("bbox_pred_") and name.endswith("_test")]:
        plain[name.removesuffix("_test")] = _normalised(name, plain.pop(name), box_std)
    tensors = {RENAME.get(name, name): _tensor(array) for name, array in plain.items()}
    if "backbone.bn_data.weight" in tensors:
        tensors["backbone.bn_data.weight"].fill_(1)
    return tensors


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .params file by their full names ("arg:conv0_weight"), of any version that MXNet wrote.

    The file is mapped, not copied: nothing is allocated by what it claims about itself. Arrays may be unaligned.

    Raises:
        ValueError: the file is damaged, or holds sparse or unnamed arrays.

    Source: MXNet's src/ndarray/ndarray.cc, NDArray::Load and LegacyLoad.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return _Reader(data, str(path)).arrays()


def _normalised(name: str, array: np.ndarray, box_std: tuple[float, float, float, float]) -> np.ndarray:
    if array.ndim == 0 or len(array) % 4:
        raise ValueError(f"{name} has the shape {array.shape}; expected four rows for each class")
    std = np.tile(np.asarray(box_std, np.float32), len(array) // 4)
    return array.astype(np.float32) / std.reshape(-1, *[1] * (array.ndim - 1))


def _tensor(array: np.ndarray) -> Tensor:
    dtype = np.float32 if array.dtype.kind == "f" else array.dtype
    with np.errstate(over="ignore"):  # infinity is refused by name when it is loaded into a model
        return torch.from_numpy(np.array(array, dtype))  # a copy: aligned and writable


class _Reader:
    """A position in a .params file, from which pieces are taken that must lie inside it."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def arrays(self) -> dict[str, np.ndarray]:
        if self.number("Q") != LIST_MAGIC:
            raise self.error("not an MXNet .params file (the first bytes are other)")
        self.number("Q")
        arrays = [self.array() for _ in range(self.count(4))]
        names = [self.name() for _ in range(self.count(8))]
        if len(names) != len(arrays) or len(set(names)) != len(names):
            raise self.error(f"{len(arrays)} arrays, but {len(set(names))} different names")
        return dict(zip(names, arrays, strict=True))

    def array(self) -> np.ndarray:
        shape = self.shape()
        if shape is None:
            return np.empty(0, np.float32)
        self.take(8)  # device type and number
        flag = self.number("i")
        if flag not in DTYPES:
            raise self.error(f"unknown type of numbers {flag}")
        count = math.prod(shape)
        values = np.frombuffer(self.data, DTYPES[flag], count, self.take(count * DTYPES[flag].itemsize))
        try:
            return (_widen(values) if flag == BFLOAT16 else values).reshape(shape)
        except ValueError as error:  # no values, but sides beyond what numpy can count
            raise self.error(f"an array of shape {shape}") from error

    def shape(self) -> tuple[int, ...] | None:
        """Sides of the array that starts here; None when it was never given a value, and then nothing follows."""
        magic = self.number("I")
        if magic in (V2, V3) and self.number("i") != DENSE:
            raise self.error("a sparse array; only dense ones are read")
        versioned = magic in (V1, V2, V3)
        axes = self.number("i") if versioned else magic
        if axes > MAX_AXES or axes < -1:
            raise self.error(f"an array of {axes} axes")
        shape = tuple(self.number("q" if versioned else "I") for _ in range(axes))
        unknown = axes < 0 or -1 in shape if magic == V3 else axes < 1
        if not unknown and min(shape, default=0) < 0:
            raise self.error(f"an array of shape {shape}")
        return None if unknown else shape

    def name(self) -> str:
        length = self.number("Q")
        start = self.take(length)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self.error("a name that is no text") from error

    def count(self, smallest: int) -> int:
        """A number of items of at least `smallest` bytes each, which must be plausible and have room in the file."""
        count = self.number("Q")
        if count * smallest > len(self.data) - self.position or count > MAX_ARRAYS:
            raise self.error(f"{count} items claimed")
        return count

    def number(self, kind: str) -> int:
        return struct.unpack_from(f"<{kind}", self.data, self.take(struct.calcsize(f"<{kind}")))[0]

    def take(self, size: int) -> int:
        """Passes over `size` bytes; returns where they start."""
        start = self.position
        if size > len(self.data) - start:
            raise self.error(f"{size} bytes wanted, {len(self.data) - start} left")
        self.position = start + size
        return start

    def error(self, reason: str) -> ValueError:
        return ValueError(f"{self.path}: damaged at byte {self.position}: {reason}; copy or download it again")


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
