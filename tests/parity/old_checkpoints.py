"""Checkpoints of mx-rcnn, written as its versions and MXNet's wrote them."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from rcnn.weights.mxnet import BOX_STD, V2

Form = Literal["v5", "v6"]  # of mx-rcnn
Header = Literal["legacy", "v2"]  # of MXNet: the number of axes first, as in 2016; or 0xF993FAC9


def in_form(arrays: Mapping[str, np.ndarray], form: Form) -> dict[str, np.ndarray]:
    """A detector's arrays by the names of a checkpoint; v5 has copies of the box layer for testing that give deltas."""
    named = {f"{'aux' if '_moving_' in name else 'arg'}:{name}": array for name, array in arrays.items()}
    if form == "v5":
        std = np.tile(np.float32(BOX_STD), len(arrays["bbox_pred_bias"]) // 4)
        named["arg:bbox_pred_weight_test"] = arrays["bbox_pred_weight"] * std[:, None]
        named["arg:bbox_pred_bias_test"] = arrays["bbox_pred_bias"] * std
    return named


def write_params(path: Path, arrays: Mapping[str, np.ndarray], header: Header) -> Path:
    """A .params file of float32 arrays."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            axes = array.ndim
            if header == "legacy":
                file.write(struct.pack(f"<I{axes}I", axes, *array.shape))
            else:
                file.write(struct.pack(f"<Iii{axes}q", V2, 0, axes, *array.shape))
            file.write(struct.pack("<iii", 1, 0, 0))
            file.write(np.ascontiguousarray(array, "<f4").data)
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name)) + name.encode())
    return path
