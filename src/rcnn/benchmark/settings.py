"""What is measured, and in which processes: plain values that travel as JSON."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import msgspec

from rcnn.config import Recipe

What = Literal["infer", "train", "ops", "data", "eval"]
Against = Literal["nothing", "torchvision", "pycocotools"]
Mode = Literal["default", "channels_last", "best", "default_malloc", "channels_last_malloc", "best_malloc"]

PEERS = {"infer": "torchvision", "train": "torchvision", "ops": "torchvision", "eval": "pycocotools"}

CLASSES = tuple(f"class {number}" for number in range(1, 81))  # of the set for eval, as many as COCO's
DETECTIONS = 100  # of each of its images

# glibc keeps freed buffers, as rcnn.allocator asks it to: what a user can set without changing torchvision's code
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


@dataclass(frozen=True)
class Side:
    """One process that is measured."""

    label: str
    package: Literal["rcnn", "torchvision", "pycocotools"] = "rcnn"
    mode: Mode = "default"
    """torchvision's: default is fp32; channels_last adds that layout and the fused optimiser; best adds bf16"""
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    """a run takes so long that two must do, without warm-up"""


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
    device: str = "auto"
    threads: int = 0
    data_root: str = ""
    images: int = 5000

    def __post_init__(self) -> None:
        for name, least in (("height", 32), ("width", 32), ("batch", 1), ("threads", 0), ("images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if self.winograd and self.what != "infer":
            raise ValueError(f"--winograd: is of inference only, not of {self.what}; leave it out, or time infer")


def choose_sides(what: What, against: Against, modes: tuple[Mode, ...]) -> list[Side]:
    """The processes of a measurement: ours first, then whatever it is compared with.

    Raises:
        ValueError: there is nothing to compare this measurement with.
    """
    sides = [Side("rcnn")]
    if what == "ops":
        sides.append(Side("rcnn reference", environment={"RCNN_KERNELS": "reference"}, slow=True))
        modes = tuple(dict.fromkeys(_of_operators(mode) for mode in modes))
    if against == "nothing":
        return sides
    if against != PEERS.get(what):
        way_out = f"use --against {PEERS[what]}, or leave --against out" if what in PEERS else "leave --against out"
        raise ValueError(f"--against {against}: it does nothing like {what}; {way_out}")
    if find_spec(against) is None:
        raise ValueError(
            f"--against {against}: it is not installed here; pip install {against}"
            f"{' from the index that torch came from' if against == 'torchvision' else ''}, or leave --against out"
        )
    if against == "pycocotools":
        return [*sides, Side(against, "pycocotools", slow=True)]
    return sides + [_peer(mode) for mode in modes]


def encode(side: Side, settings: Settings) -> str:
    """Both as one line of JSON."""
    return msgspec.json.encode((side, settings)).decode()


def decode(line: str) -> tuple[Side, Settings]:
    """What `encode` wrote."""
    return msgspec.json.decode(line, type=tuple[Side, Settings])


def _of_operators(mode: Mode) -> Mode:
    """Layout and precision are fixed by torchvision's operators; only the allocator is left to choose."""
    return "default_malloc" if mode.endswith("_malloc") else "default"


def _peer(mode: Mode) -> Side:
    environment = KEEP_FREED_MEMORY if mode.endswith("_malloc") else {}
    return Side(f"torchvision {mode}", "torchvision", mode, environment)
