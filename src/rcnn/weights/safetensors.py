"""The .safetensors container: how our models are stored, with recipe, class names and conventions in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rcnn.atomic import replacing

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes the tensors with the texts of `header` to `path`, which is replaced only by a whole file.

    One tensor at a time is in memory besides the ones given; the same input gives the same bytes.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; a former file is untouched.
    """
    # Large items first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head = _head(tensors, order, header)
    with replacing(path) as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in order:
            file.write(_bytes(tensors[name]))


def load(path: str | Path, *, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, memory-mapped where the system can, and the texts of its header.

    Args:
        header_only: no tensors are read; the dictionary is empty.

    Raises:
        ValueError: the file is not there, damaged, cut off or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [] if header_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a safetensors file, or damaged or cut off ({str(error)[:200]}); copy or download it again"
        ) from error


def header_value(path: str | Path, header: Mapping[str, str], key: str, kind: type) -> Any:
    """The JSON in a text of the header.

    Raises:
        ValueError: it is not there, no JSON, or of another kind than `kind`.
    """
    try:
        value = json.loads(header[key])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its header holds no sound {key!r} ({str(error)[:200]}); copy it again") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: {key!r} in its header is no {kind.__name__}; copy the file again")
    return value


def _head(tensors: Mapping[str, Tensor], order: list[str], header: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(header)}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(table, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
