"""The input range that weights were trained on, and their conversion to another one."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class PixelRange(NamedTuple):
    """How a network wants its RGB input (0..255): minus mean, divided by std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __str__(self) -> str:
        divided = "" if self.std == (1.0, 1.0, 1.0) else f", divided by {_words(self.std)}"
        return f"RGB of 0 to 255 minus {_words(self.mean)}{divided}"


def take_rgb(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors (our names) of a network that takes BGR, changed so that it computes the same of RGB."""
    changed = dict(tensors)
    for name in ("backbone.conv1_1.weight", "backbone.conv1.weight"):
        if name in tensors and tensors[name].dim() == 4:
            changed[name] = tensors[name].flip(1)
    return changed


def match_pixels(
    tensors: Mapping[str, Tensor], trained: PixelRange | None, wanted: PixelRange, *, source: object
) -> dict[str, Tensor]:
    """The tensors (our names) changed so that a network fed in the range `wanted` computes what it did in `trained`.

    The first convolution takes over the scale, its bias or batch norm the shift. Without it torchvision's VGG16,
    trained on inputs of about 1, would see inputs of about 60 in an mx-rcnn recipe. None = the range is not known:
    nothing changes.

    Differs: at the picture's edge, where zeros are padded, the shift is not undone; between the common ImageNet
    means it is below 0.02 standard deviations.

    Args:
        source: what the tensors were read from, for messages.

    Raises:
        ValueError: for MXNet's ResNets, whose first layer is a batch norm; a first convolution that takes no RGB, or
            lacks its bias or batch norm.
    """
    changed = dict(tensors)
    if trained is None or _close(trained, wanted):
        return changed
    if "backbone.bn_data.weight" in tensors:
        values = f"--model.pixel_mean {_words(trained.mean)} --model.pixel_std {_words(trained.std)}"
        raise ValueError(f"{source}: weights of MXNet's ResNet take their own input range; use {values}")
    scale, shift = _affine(trained, wanted)
    for conv, follower in (("conv1_1.weight", "conv1_1.bias"), ("conv1.weight", "bn1.running_mean")):
        weight = tensors.get(f"backbone.{conv}")
        if weight is None:
            continue
        moved, sign = tensors.get(f"backbone.{follower}"), 1 if follower.endswith("bias") else -1
        if weight.dim() != 4 or weight.shape[1] != 3 or moved is None or moved.shape != weight.shape[:1]:
            held = "no" if moved is None else f"{tuple(moved.shape)} of"
            raise ValueError(
                f"{source}: its backbone.{conv} is {tuple(weight.shape)}, with {held} {follower}: no whole first layer "
                "of a network that takes RGB; give the weights of a whole backbone"
            )
        exact = weight.double()
        changed[f"backbone.{conv}"] = (exact * scale[:, None, None]).to(weight.dtype)
        added = sign * (exact.sum((2, 3)) @ shift)
        changed[f"backbone.{follower}"] = (moved.double() + added).to(moved.dtype)
    return changed


def _affine(trained: PixelRange, wanted: PixelRange) -> tuple[Tensor, Tensor]:
    """Scale and shift by channel that turn an input in the range `wanted` into one in `trained`."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in trained)
    new_mean, new_std = (torch.tensor(values, dtype=torch.float64) for values in wanted)
    return new_std / std, (new_mean - mean) / std


def _close(a: PixelRange, b: PixelRange) -> bool:
    return all(abs(x - y) <= 1e-6 for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
