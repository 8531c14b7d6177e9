"""What is measured, and in which processes: plain values that travel as JSON."""

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from shutil import which
from typing import Literal

import msgspec

from rcnn.config import Recipe

What = Literal["infer", "train", "ops", "data", "eval"]
Against = Literal["nothing", "torchvision", "mxnet", "pycocotools"]
Mode = Literal["default", "channels_last", "best", "default_malloc", "channels_last_malloc", "best_malloc"]

PEERS = {
    "infer": ("torchvision", "mxnet"),
    "train": ("torchvision", "mxnet"),
    "ops": ("torchvision",),
    "eval": ("pycocotools",),
}

CLASSES = tuple(f"class {number}" for number in range(1, 81))  # of the set for eval, as many as COCO's
DETECTIONS = 100  # of each of its images

# glibc keeps freed buffers and PyTorch asks for huge pages, as rcnn.allocator tells them: what a user can set without
# changing torchvision's code
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    "MALLOC_TOP_PAD_": str(256 * 2**20),
    "THP_MEM_ALLOC_ENABLE": "1",
}


@dataclass(frozen=True)
class Side:
    """What is measured, in a process of its own or several."""

    label: str
    package: Literal["rcnn", "torchvision", "mxnet", "pycocotools"] = "rcnn"
    mode: Mode = "default"
    """torchvision's: default is fp32; channels_last adds that layout and the fused optimiser; best adds bf16"""
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    """a run takes so long that two must do, without warm-up"""
    processes: int = 1
    """that share a step, each with a batch of its own"""
    python: str = ""
    """the interpreter that has mxnet; the other packages are in this one"""


@dataclass(frozen=True)
class Settings:
    """What every side of a measurement does."""

    what: What
    recipe: Recipe
    height: int = 600
    width: int = 800
    batch: int = 1
    precision: Literal["recipe", "fp32", "bf16", "auto"] = "recipe"
    winograd: bool = False
    int8: bool = False
    device: str = "auto"
    threads: int = 0
    data_root: str = ""
    images: int = 5000

    def __post_init__(self) -> None:
        for name, least in (("height", 32), ("width", 32), ("batch", 1), ("threads", 0), ("images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")
        for name in ("winograd", "int8"):
            if getattr(self, name) and self.what != "infer":
                raise ValueError(f"--{name}: is of inference only, not of {self.what}; leave it out, or time infer")


def with_rois(recipe: Recipe, rois: int) -> Recipe:
    """The recipe with so many RoIs of a picture in the second stage, trained or not; 0: as it is.

    Raises:
        ValueError: a negative number.
    """
    if rois < 0:
        raise ValueError(f"--rois {rois}: must be at least 1, or 0 for what the recipe says")
    if not rois:
        return recipe
    return replace(recipe, train=replace(recipe.train, rois=rois), eval=replace(recipe.eval, rpn_post_nms=rois))


def choose_sides(
    what: What, against: Against, modes: tuple[Mode, ...], devices: int = 1, python: str = ""
) -> list[Side]:
    """The processes of a measurement: ours first, then whatever it is compared with.

    Args:
        devices: more than one compares a training step of ours with that of so many processes.
        python: the interpreter that has mxnet.

    Raises:
        ValueError: there is nothing to compare this measurement with.
    """
    sides = [Side("rcnn")]
    if devices != 1 and (devices < 1 or what != "train"):
        raise ValueError(f"--devices {devices}: is for train, with 2 processes or more")
    if devices > 1:
        sides.append(Side(f"rcnn, {devices} processes", processes=devices))
    if what == "ops":
        sides.append(Side("rcnn reference", environment={"RCNN_KERNELS": "reference"}, slow=True))
        modes = _of_allocator(modes)
    if against == "nothing":
        return sides
    if against not in PEERS.get(what, ()):
        way_out = "leave --against out"
        if what in PEERS:
            way_out = f"use --against {' or '.join(PEERS[what])}, or {way_out}"
        raise ValueError(f"--against {against}: it does nothing like {what}; {way_out}")
    if against == "mxnet":
        return sides + [_peer("mxnet", mode, _interpreter(python)) for mode in _of_allocator(modes)]
    if find_spec(against) is None:
        raise ValueError(
            f"--against {against}: it is not installed here; pip install {against}"
            f"{' from the index that torch came from' if against == 'torchvision' else ''}, or leave --against out"
        )
    if against == "pycocotools":
        return [*sides, Side(against, "pycocotools", slow=True)]
    return sides + [_peer("torchvision", mode) for mode in modes]


def encode(side: Side, settings: Settings) -> str:
    """Both as one line of JSON."""
    return msgspec.json.encode((side, settings)).decode()


def decode(line: str) -> tuple[Side, Settings]:
    """What `encode` wrote."""
    return msgspec.json.decode(line, type=tuple[Side, Settings])


def _of_allocator(modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """Layout and precision of torchvision's operators and of MXNet are fixed; only the allocator is left to choose."""
    return tuple(dict.fromkeys("default_malloc" if mode.endswith("_malloc") else "default" for mode in modes))


def _peer(package: Literal["torchvision", "mxnet"], mode: Mode, python: str = "") -> Side:
    environment = KEEP_FREED_MEMORY if mode.endswith("_malloc") else {}
    return Side(f"{package} {mode}", package, mode, environment, python=python)


def _interpreter(python: str) -> str:
    if not which(python):
        raise ValueError(
            f"--peer-python {python!r}: no such program; --against mxnet needs the Python of a venv with mxnet==1.9.1 "
            "and numpy==1.23.5 (Python 3.10 or 3.11), or leave --against out"
        )
    return python
