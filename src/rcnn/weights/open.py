"""Any weight file that we know, by what is in it, under our names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from rcnn.weights import caffe, jwyang, mxnet, pytorch, safetensors, simple_faster_rcnn, torchvision
from rcnn.weights.conventions import CONTINUOUS, INCLUSIVE, in_words, refuse_unready
from rcnn.weights.networks import refuse_another
from rcnn.weights.pixels import PixelRange, take_rgb
from rcnn.weights.pytorch import Checkpoint
from rcnn.weights.strangers import refuse_strangers

Pixels = Literal["auto", "caffe", "torchvision"]  # the input that weights were trained on; auto: the file says it
OURS = "rcnn"  # how the header entry "format" of our own files begins
KNOWN = (
    "known formats: .safetensors (ours, or torchvision's names), PyTorch .pth (torchvision's classifiers, "
    "simple-faster-rcnn-pytorch, jwyang's faster-rcnn.pytorch), MXNet .params (mx-rcnn), Caffe .caffemodel (VGG16, "
    "py-faster-rcnn)"
)
SIMPLE, JWYANG = "simple-faster-rcnn-pytorch", "jwyang's faster-rcnn.pytorch"
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
    conventions: Mapping[str, object] = field(default_factory=dict)  # of a detector; see conventions
    keeps_all: bool = False  # whether its program limits the number of detections by nothing but their score
    notes: tuple[str, ...] = ()  # what had to be taken for granted

    def __str__(self) -> str:
        return f"{self.path} ({self.kind})"

    def model_fields(self) -> dict[str, Any]:
        """The fields of a recipe's model that a detector from here must have.

        Raises:
            ValueError: it needs what no model of ours has.
        """
        refuse_unready(self.conventions, source=str(self))
        own = {} if self.pixels is None else {"pixel_mean": self.pixels.mean, "pixel_std": self.pixels.std}
        return {**self.conventions, **own}

    def told(self) -> str:
        """What a user should know of a detector from here, in lines."""
        lines = [f"conventions: {in_words(self.conventions)}"] if self.conventions else []
        return "".join(f"\n{line}" for line in [*lines, *self.notes])


def read_weights(path: str | Path, backbone: str, pixels: Pixels = "auto") -> tuple[Named, Source]:
    """The tensors of a weight file under our names, and where they came from.

    Our own model.safetensors keeps its names; those of other programs are renamed for `backbone`.

    Args:
        pixels: the input that the weights were trained on, for the few files that do not say it.

    Raises:
        ValueError: no such file, a format we do not know, a damaged file, or weights of another network.
    """
    start = _start(path)
    if start[5:9] == b"\0\0\0{":  # the length of a header below 2^40, and the header
        tensors, source = _from_safetensors(path, backbone, pixels)
    elif int.from_bytes(start[:8], "little") == mxnet.LIST_MAGIC:
        tensors, source = _from_mxnet(path, backbone)
    elif start.startswith((b"PK\x03\x04", b"\x80")):  # a zip file or a pickle
        tensors, source = _from_pytorch(pytorch.read(path), path, backbone, pixels)
    elif _is_caffe(path, start):
        tensors, source = _from_caffe(path)
    else:
        raise ValueError(f"{path}: {_what(start)}; {KNOWN}")
    refuse_another(tensors, backbone, source=str(source))
    if pixels != "auto" and source.kind not in (SIMPLE, JWYANG):
        raise ValueError(f"{source}: its input is known without --pixels {pixels}; leave that out")
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


def _from_safetensors(path: str | Path, backbone: str, pixels: Pixels) -> tuple[Named, Source]:
    tensors, header = safetensors.load(path)
    if not header.get("format", "").startswith(OURS):
        return _from_pytorch(Checkpoint(tensors, {}), path, backbone, pixels)
    classes = _json(header, "classes", list)
    model = _json(header, "recipe", dict).get("model")
    if any(name.endswith(".weight_step") for name in tensors):
        raise ValueError(f"{path}: weights in int8, which are for inference only; use the model it was made from")
    return tensors, Source(str(path), "a model of rcnn", tuple(map(str, classes)), _pixels(model))


def _json(header: Mapping[str, str], key: str, kind: type) -> Any:
    """A value of our header, or an empty one of the same kind: whoever needs it asks for it by a stricter way."""
    try:
        value = json.loads(header[key])
    except (KeyError, ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()


def _pixels(model: Any) -> PixelRange | None:
    try:
        mean, std = ([float(value) for value in model[key]] for key in ("pixel_mean", "pixel_std"))
        return PixelRange((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
    except (TypeError, ValueError, LookupError, OverflowError):
        return None


def _from_pytorch(checkpoint: Checkpoint, path: str | Path, backbone: str, pixels: Pixels) -> tuple[Named, Source]:
    """By the names of the tensors: a detector of one of the programs that we know, or a classifier."""
    refuse_strangers(checkpoint.tensors, source=str(path))
    try:
        if simple_faster_rcnn.recognises(checkpoint.tensors):
            return _from_simple_faster_rcnn(checkpoint, path, pixels)
        if jwyang.recognises(checkpoint.tensors):
            return _from_jwyang(checkpoint, path, pixels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _from_torchvision(checkpoint.tensors, path, backbone)


def _from_simple_faster_rcnn(checkpoint: Checkpoint, path: str | Path, pixels: Pixels) -> tuple[Named, Source]:
    chosen = simple_faster_rcnn.input_of(checkpoint.beside) if pixels == "auto" else pixels
    if chosen == "auto":
        raise ValueError(
            f"a checkpoint of {SIMPLE} that does not say whether it was trained from Caffe's or "
            f"torchvision's weights; give rcnn convert --pixels {' or --pixels '.join(get_args(Pixels)[1:])}"
        )
    tensors = simple_faster_rcnn.from_simple_faster_rcnn(checkpoint.tensors, chosen)
    range_ = simple_faster_rcnn.PIXELS[chosen]
    return tensors, Source(str(path), SIMPLE, pixels=range_, conventions=CONTINUOUS, keeps_all=True)


def _from_jwyang(checkpoint: Checkpoint, path: str | Path, pixels: Pixels) -> tuple[Named, Source]:
    chosen = "caffe" if pixels == "auto" else pixels
    tensors, roi_op = jwyang.from_jwyang(checkpoint.tensors, chosen), jwyang.roi_op_of(checkpoint.beside)
    source = Source(
        str(path),
        JWYANG,
        pixels=jwyang.PIXELS[chosen],
        conventions={**INCLUSIVE, "beyond": 1.0, "roi_op": roi_op or "pool"},
        notes=jwyang.notes_on(roi_op),
    )
    return tensors, source


def _from_torchvision(tensors: Named, path: str | Path, backbone: str) -> tuple[Named, Source]:
    source = Source(str(path), "torchvision's names", pixels=torchvision.pixel_range(tensors))
    refuse_another(tensors, backbone, source=str(source))
    named = torchvision.rename(tensors, backbone)
    return take_rgb(named) if torchvision.takes_bgr(tensors) else named, source


def _from_mxnet(path: str | Path, backbone: str) -> tuple[Named, Source]:
    pixels = mxnet.VGG_PIXELS if backbone == "vgg16" else mxnet.RESNET_PIXELS
    arrays = mxnet.read(path)
    try:
        source = Source(str(path), "MXNet", pixels=pixels, conventions=INCLUSIVE, keeps_all=True)
        return mxnet.from_mxnet(arrays), source
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_caffe(path: str | Path) -> tuple[Named, Source]:
    arrays = caffe.read(path)
    try:
        source = Source(str(path), "Caffe", pixels=caffe.pixel_range(arrays), conventions={**INCLUSIVE, "beyond": 1.0})
        return caffe.from_caffe(arrays), source
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
