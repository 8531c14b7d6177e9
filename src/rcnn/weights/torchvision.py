"""PyTorch's .pth files, and torchvision's names of VGG16 and ResNet classifiers."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcnn.weights.pixels import PixelRange

# What every model of torchvision takes: RGB / 255 minus .485 .456 .406, divided by .229 .224 .225.
PIXELS = PixelRange((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Source: VGG16_Weights.IMAGENET1K_FEATURES, ported from Caffe: another mean, no deviation, NaN for fc6 and fc7.
CAFFE_PIXELS = PixelRange((122.99925, 116.99925, 103.9992))
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the state dict
VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG16_STAGES = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
VGG16_RENAME = {f"features.{i}": f"backbone.conv{s}" for i, s in zip(VGG16_FEATURES, VGG16_STAGES, strict=True)}
VGG16_RENAME |= {"classifier.0": "head.fc6", "classifier.3": "head.fc7"}
RESNET_TRUNK = re.compile(r"(?:conv1|bn1|layer[123])\.")


def read(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .pth file of either format, without running any code that the file may hold.

    A state dict inside a checkpoint ("state_dict", "model") is found; the prefix "module." of data-parallel
    training is taken off. Files of the zip format are memory-mapped.

    Raises:
        ValueError: the file is damaged, wants to run code or holds no state dict.
    """
    tensors = _state_dict(_load(path))
    if not tensors:
        raise ValueError(f"{path}: no state dict in it (a dictionary of names and tensors)")
    for name, tensor in tensors.items():
        _refuse_odd(tensor, f"{path}: {name}")
    return tensors


def rename(tensors: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """Tensors with torchvision's names of `backbone` under our names; names that are not torchvision's stay.

    The classifier of ImageNet's 1000 classes keeps its name. Counters of batch norm are dropped: they are no weights.
    """
    change = _rename_vgg16 if backbone == "vgg16" else _rename_resnet
    return {change(name): tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}


def pixel_range(tensors: Mapping[str, Tensor]) -> PixelRange:
    """The input that torchvision's classifier with these tensors (its names) was trained on."""
    fc6 = tensors.get("classifier.0.weight")
    return CAFFE_PIXELS if fc6 is not None and bool(fc6[:1].isnan().all()) else PIXELS


def _rename_vgg16(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{VGG16_RENAME[layer]}.{parameter}" if layer in VGG16_RENAME else name


def _rename_resnet(name: str) -> str:
    if RESNET_TRUNK.match(name):
        return f"backbone.{name}"
    return f"head.{name}" if name.startswith("layer4.") else name


def _load(path: str | Path) -> Any:
    try:
        # Only the zip format can be mapped, and only by path; torch.load believes the extension of a path.
        if zipfile.is_zipfile(path) and Path(path).suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # what a damaged pickle raises can be nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a whole PyTorch file ({reason}); copy or download it again") from error


def _refusal(message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    if wanted is None:
        return "not a PyTorch file of tensors, or damaged; copy or download it again"
    return (
        f"holds Python objects ({wanted[1]}) besides tensors, and to read them would run code of the file's author; "
        "save its state_dict() alone with torch.save, or as .safetensors"
    )


def _state_dict(loaded: Any) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        return {}
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _refuse_odd(tensor: Tensor, where: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        raise ValueError(f"{where}: a {tensor.layout} {tensor.dtype} tensor; only plain real ones are read")
    # A few bytes can pretend to be an endless tensor by strides of zero.
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{where}: the file holds fewer values than the shape {tuple(tensor.shape)} needs")
