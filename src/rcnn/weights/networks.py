"""Which network a set of tensors is of, told by names and shapes, and the refusal to load another one."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

BACKBONES = ("vgg16", "resnet18", "resnet50", "resnet101", "resnet50_v2", "resnet101_v2")  # those we build
VGG_CONVOLUTIONS = {5: "alexnet", 8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}
# has a third convolution in a block, blocks of the first three stages
RESNET_BLOCKS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2)): "resnet18",
    (False, (3, 4, 6)): "resnet34",
    (True, (3, 4, 6)): "resnet50",
    (True, (3, 4, 23)): "resnet101",
    (True, (3, 8, 36)): "resnet152",
}
OWNER = re.compile(r"^(?:backbone\.|head\.)")


class Network(NamedTuple):
    """A network that was recognised."""

    name: str  # as in --model.backbone where we build it
    evidence: str  # a tensor that shows it


def recognise(tensors: Mapping[str, Tensor]) -> Network | None:
    """The network these tensors are of, with our names or torchvision's; None for one that is not known."""
    shapes = {OWNER.sub("", name): tuple(tensor.shape) for name, tensor in tensors.items()}
    return _vgg(shapes) or _resnet(shapes, "layer{}.", "") or _resnet(shapes, "stage{}_unit", "_v2")


def refuse_another(tensors: Mapping[str, Tensor], wanted: str, *, source: str) -> None:
    """Passes when the tensors are of the backbone `wanted` or of none that is known.

    Raises:
        ValueError: saying what the file holds, by which tensor, and the way out.
    """
    found = recognise(tensors)
    if found is None or found.name == wanted:
        return
    way_out = f"give weights of {wanted} as --model.pretrained"
    if found.name in BACKBONES:
        way_out += f", or choose --model.backbone {found.name}"
    raise ValueError(
        f"{source}: this file holds {found.name} ({found.evidence} ...), the recipe wants {wanted}; {way_out}"
    )


def _vgg(shapes: Mapping[str, tuple[int, ...]]) -> Network | None:
    pattern = re.compile(r"(?:features\.\d+|conv\d_\d)\.weight")
    convolutions = [name for name, shape in shapes.items() if pattern.fullmatch(name) and len(shape) == 4]
    name = VGG_CONVOLUTIONS.get(len(convolutions))
    if name is None:
        return None
    normalised = "_bn" if "features.1.running_mean" in shapes else ""
    return Network(name + normalised, max(convolutions, key=lambda name: (len(name), name)))


def _resnet(shapes: Mapping[str, tuple[int, ...]], stage: str, suffix: str) -> Network | None:
    blocks = tuple(_blocks(shapes, re.escape(stage.format(i))) for i in (1, 2, 3))
    if not blocks[0]:
        return None
    first, last = stage.format(1) + ("1" if suffix else "0"), _last(shapes, stage.format(3))
    name = RESNET_BLOCKS.get((f"{first}.conv3.weight" in shapes, blocks))
    if name is None:
        return Network(f"a ResNet of {', '.join(map(str, blocks))} blocks", f"{first}.conv1.weight")
    return Network(_width(shapes, first) + name + suffix, last)


def _blocks(shapes: Iterable[str], stage: str) -> int:
    return sum(re.fullmatch(rf"{stage}\d+\.conv1\.weight", name) is not None for name in shapes)


def _last(shapes: Iterable[str], stage: str) -> str:
    pattern = re.compile(rf"{re.escape(stage)}\d+\.conv\d\.weight")
    return max((name for name in shapes if pattern.fullmatch(name)), key=lambda name: (len(name), name), default=stage)


def _width(shapes: Mapping[str, tuple[int, ...]], block: str) -> str:
    # Wide ResNets and ResNeXts have a ResNet's names; only shapes tell them apart.
    reduce, spatial = shapes.get(f"{block}.conv1.weight", ()), shapes.get(f"{block}.conv2.weight", ())
    if len(reduce) != 4 or len(spatial) != 4:
        return ""
    if spatial[1] != reduce[0]:
        return "a grouped "
    return "a wide " if reduce[0] > reduce[1] else ""
