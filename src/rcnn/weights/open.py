"""Any weight file that we know, by what is in it, under our names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rcnn.weights import caffe, mxnet, safetensors, torchvision
from rcnn.weights.networks import refuse_another
from rcnn.weights.pixels import PixelRange

OURS = "rcnn"  # how the header entry "format" of our own files begins
KNOWN = (
    "known formats: .safetensors (ours, or torchvision's names), PyTorch .pth (torchvision's classifiers), "
    "MXNet .params (mx-rcnn), Caffe .caffemodel (VGG16, py-faster-rcnn)"
)
WRONG_STARTS = {  # what people have on disk instead of weights
    b"<": "a web page, not weights: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer, not the weights: run `git lfs pull`",
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x1f\x8b": "a gzip archive: unpack it",
}
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where tensors came from; as text, a short description for messages."""

    path: str
    kind: str
    classes: tuple[str, ...] = ()  # of the last layers, without background; () = the file does not say
    pixels: PixelRange | None = None  # the input that the weights were trained on; None = the file does not say

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"


def read_weights(path: str | Path, backbone: str) -> tuple[Named, Source]:
    """The tensors of a weight file under our names, and where they came from.

    Our own model.safetensors keeps its names; torchvision's, MXNet's and Caffe's are renamed for `backbone`.

    Raises:
        ValueError: no such file, a format we do not know, a damaged file, or weights of another network.
    """
    start = _start(path)
    if start[5:9] == b"\0\0\0{":  # the length of a header below 2^40, and the header
        tensors, source = _from_safetensors(path, backbone)
    elif int.from_bytes(start[:8], "little") == mxnet.LIST_MAGIC:
        tensors, source = _from_mxnet(path, backbone)
    elif start.startswith((b"PK\x03\x04", b"\x80")):  # a zip file or a pickle
        tensors, source = _from_torchvision(torchvision.read(path), path, backbone)
    elif _is_caffe(path, start):
        tensors, source = _from_caffe(path)
    else:
        raise ValueError(f"{path}: {_what(start)}; {KNOWN}")
    refuse_another(tensors, backbone, source=str(source))
    return tensors, source


def _start(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _is_caffe(path: str | Path, start: bytes) -> bool:
    named = Path(path).suffix == ".caffemodel" and bool(start) and _wrong(start) is None
    return named or caffe.recognises(path)


def _wrong(start: bytes) -> str | None:
    return next((text for first, text in WRONG_STARTS.items() if start.startswith(first)), None)


def _what(start: bytes) -> str:
    if not start:
        return "an empty file"
    return _wrong(start) or f"not a weight file we know (it starts with {start[:8]!r})"


def _from_safetensors(path: str | Path, backbone: str) -> tuple[Named, Source]:
    tensors, header = safetensors.load(path)
    if not header.get("format", "").startswith(OURS):
        return _from_torchvision(tensors, path, backbone)
    classes = _json(header, "classes", list)
    model = _json(header, "recipe", dict).get("model", {})
    return tensors, Source(str(path), "a model of rcnn", tuple(map(str, classes)), _pixels(model))


def _json(header: Mapping[str, str], key: str, kind: type) -> Any:
    """A value of our header, or an empty one of the same kind: whoever needs it asks for it by a stricter way."""
    try:
        value = json.loads(header[key])
    except (KeyError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()


def _pixels(model: Any) -> PixelRange | None:
    try:
        mean, std = ([float(value) for value in model[key]] for key in ("pixel_mean", "pixel_std"))
        return PixelRange((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    except (TypeError, ValueError, LookupError):
        return None


def _from_torchvision(tensors: Named, path: str | Path, backbone: str) -> tuple[Named, Source]:
    source = Source(str(path), "torchvision's names", pixels=torchvision.pixel_range(tensors))
    refuse_another(tensors, backbone, source=str(source))
    return torchvision.rename(tensors, backbone), source


def _from_mxnet(path: str | Path, backbone: str) -> tuple[Named, Source]:
    pixels = mxnet.VGG_PIXELS if backbone == "vgg16" else mxnet.RESNET_PIXELS
    arrays = mxnet.read(path)
    try:
        return mxnet.from_mxnet(arrays), Source(str(path), "MXNet", pixels=pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_caffe(path: str | Path) -> tuple[Named, Source]:
    arrays = caffe.read(path)
    try:
        return caffe.from_caffe(arrays), Source(str(path), "Caffe", pixels=mxnet.VGG_PIXELS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
