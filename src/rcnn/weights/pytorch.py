"""PyTorch's .pth files: the state dict in them and what stands beside it, without running code that they may hold."""

import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the state dict
# Whose objects a file wants to make: how the name of the first one begins -> what such files are.
AUTHORS = {
    "mmengine": "a checkpoint of mmdetection",
    "mmcv": "a checkpoint of mmdetection",
    "mmdet": "a checkpoint of mmdetection",
    "detectron2": "a checkpoint of detectron2",
    "fvcore": "a checkpoint of detectron2",
    "numpy": "a pickle of NumPy arrays, as in detectron2's model zoo",
    "ultralytics": "a YOLO model of Ultralytics",
    "models.": "a YOLO model of Ultralytics",
}
NUMPY_SCALARS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class Checkpoint(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    beside: Mapping[str, Any]  # what a training script put beside the state dict: numbers, texts, dictionaries


class _Nothing:
    """Stands where a file has a number of NumPy, as some programs record their best score: NumPy is not called."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: str | Path) -> Checkpoint:
    """The state dict in a .pth file of either format, without running any code that the file may hold.

    A state dict inside a checkpoint ("state_dict", "model") is found; the prefix "module." of data-parallel
    training is taken off. Files of the zip format are memory-mapped.

    Raises:
        ValueError: the file is damaged, wants to run code or holds no state dict.
    """
    checkpoint = _split(_load(path))
    if not checkpoint.tensors:
        raise ValueError(f"{path}: no state dict in it (a dictionary of names and tensors)")
    for name, tensor in checkpoint.tensors.items():
        _refuse_odd(tensor, f"{path}: {name}")
    return checkpoint


def _load(path: str | Path) -> Any:
    numpy_scalars: list[Any] = [(_Nothing, name) for name in NUMPY_SCALARS]
    try:
        with torch.serialization.safe_globals(numpy_scalars):
            return _load_tensors(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # what a damaged pickle raises can be nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a whole PyTorch file ({reason}); copy or download it again") from error


def refuse_bombs(path: str | Path) -> bool:
    """Passes unless a file of torch.save could fill the memory with a few bytes; returns whether it is a zip file.

    Raises:
        OSError: its parts are compressed, or its pickle makes a bytearray, for which the file names but a length.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _refuse_makers(data)
        return False
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise OSError("its parts are compressed, which PyTorch's never are")
            if entry.filename.endswith(".pkl"):
                _refuse_makers(archive.read(entry))
    return True


def _refuse_makers(data: bytes | mmap.mmap) -> None:
    if data.find(b"bytearray") >= 0:
        raise OSError("it makes a bytearray, which no file of tensors does")


def _load_tensors(path: str | Path) -> Any:
    zipped = refuse_bombs(path)
    # Only the zip format can be mapped, and only by path; torch.load believes the extension of a path.
    if zipped and Path(path).suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with open(path, "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _refusal(message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    if wanted is None:
        return "not a PyTorch file of tensors, or damaged; copy or download it again"
    author = next((what for start, what in AUTHORS.items() if wanted[1].startswith(start)), "")
    known = f"{author}, which is not read yet: it " if author else ""
    return (
        f"{known}holds Python objects ({wanted[1]}) besides tensors, and to read them would run code of the file's "
        "author; save its state_dict() alone with torch.save, or as .safetensors"
    )


def _split(loaded: Any) -> Checkpoint:
    if not isinstance(loaded, Mapping):
        return Checkpoint({}, {})
    wrapper = next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
    state, beside = loaded, {}
    if wrapper is not None:
        state, beside = loaded[wrapper], {key: loaded[key] for key in loaded if isinstance(key, str) and key != wrapper}
    # Other keys than texts are none of ours, and a few bytes of nested tuples can be endless as text.
    tensors = {name: x.detach() for name, x in state.items() if isinstance(name, str) and isinstance(x, Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return Checkpoint(tensors, beside)


def _refuse_odd(tensor: Tensor, where: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        raise ValueError(f"{where}: a {tensor.layout} {tensor.dtype} tensor; only plain real ones are read")
    # A few bytes can pretend to be an endless tensor by strides of zero.
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{where}: the file holds fewer values than the shape {tuple(tensor.shape)} needs")
