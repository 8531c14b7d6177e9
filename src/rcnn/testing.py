"""Contracts that a data set or a backbone of your own must keep, as assertions for its tests."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOLERANCE = 0.01  # px; float32 coordinates of large images


def assert_is_dataset(dataset: Any, *, offset: float, records: int = 50) -> None:
    """Asserts that `dataset` is what the loader takes: see `rcnn.data.records.Dataset`.

    Args:
        offset: 1 for inclusive boxes, 0 for continuous ones.
        records: how many records are looked at, spread over the set.

    Raises:
        AssertionError: naming the record and what is wrong with it.
    """
    _assert_names(dataset)
    _assert_arrays(dataset)
    step = max(1, len(dataset) // records)
    for index in range(0, len(dataset), step):
        _assert_record(dataset, index, offset)
    ids = [dataset[index].image_id for index in range(len(dataset))]
    assert len(set(ids)) == len(ids), "image_id comes twice; ids must be unique"


def _assert_names(dataset: Any) -> None:
    assert isinstance(dataset.name, str), "name must be a str"
    classes = dataset.classes
    assert isinstance(classes, tuple) and all(isinstance(c, str) for c in classes), "classes must be a tuple of str"
    assert classes and len(set(classes)) == len(classes), f"classes must be unique and at least one: {classes}"


def _assert_arrays(dataset: Any) -> None:
    assert len(dataset) > 0, "the data set is empty"
    assert np.asarray(dataset.sizes).shape == (len(dataset), 2), "sizes must be (N, 2): height, width"
    assert np.asarray(dataset.num_boxes).shape == (len(dataset),), "num_boxes must be (N,)"
    assert (np.asarray(dataset.sizes) > 0).all(), "sizes must be positive"


def _assert_record(dataset: Any, index: int, offset: float) -> None:
    record = dataset[index]
    where = f"record {index} ({record.image_id!r})"
    assert isinstance(record.image_id, str | int), f"{where}: image_id must be str or int"
    assert os.path.isfile(record.path), f"{where}: {record.path} is no file"
    assert (record.height, record.width) == tuple(dataset.sizes[index]), f"{where}: height, width differ from sizes"
    count = int(dataset.num_boxes[index])
    _assert_array(where, "boxes", record.boxes, (count, 4), np.float32)
    _assert_array(where, "labels", record.labels, (count,), np.int64)
    _assert_array(where, "ignore", record.ignore, (count,), np.bool_)
    _assert_array(where, "areas", record.areas, (count,), np.float32)
    _assert_array(where, "crowd", record.crowd, (count,), np.bool_)
    _assert_values(where, dataset, record, offset)


def _assert_array(where: str, name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    assert isinstance(array, np.ndarray), f"{where}: {name} must be a numpy array, not {type(array).__name__}"
    assert array.shape == shape, f"{where}: {name} has shape {array.shape}, not {shape}"
    assert array.dtype == dtype, f"{where}: {name} is {array.dtype}, not {np.dtype(dtype)}"


def _assert_values(where: str, dataset: Any, record: Any, offset: float) -> None:
    boxes, labels = record.boxes, record.labels
    limits = np.array([record.width, record.height]) - offset
    assert np.isfinite(boxes).all(), f"{where}: a coordinate is not finite"
    assert (boxes[:, 2:] - boxes[:, :2] + offset > 0).all(), f"{where}: a box has no area (offset {offset:g})"
    assert (boxes[:, :2] >= -TOLERANCE).all() and (boxes[:, 2:] <= limits + TOLERANCE).all(), (
        f"{where}: a box reaches outside the image (offset {offset:g})"
    )
    last = len(dataset.classes)
    assert ((labels >= 1) & (labels <= last)).all(), f"{where}: labels must be 1..{last}"
    assert (record.ignore | ~record.crowd).all(), f"{where}: a crowd must be ignored too"


def assert_is_backbone(backbone: nn.Module) -> None:
    """Asserts that `backbone` is what FasterRCNN takes: `channels`, `stride`, and a forward that keeps images apart.

    Raises:
        AssertionError: naming what is wrong with it.
    """
    channels, stride = getattr(backbone, "channels", None), getattr(backbone, "stride", None)
    assert isinstance(channels, int) and isinstance(stride, int), "channels and stride must be attributes, and int"
    images = torch.randn(2, 3, 2 * stride, 3 * stride, generator=torch.Generator().manual_seed(0))
    given = images.clone()
    features = backbone.train()(given)
    assert torch.equal(given, images), "forward changes its input; the first operation must not work in place"
    assert features.shape == (2, channels, 2, 3), (
        f"features of a canvas of 2 x 3 strides have shape {tuple(features.shape)}, not (2, {channels}, 2, 3)"
    )
    assert features.is_floating_point() and features.isfinite().all(), "features must be finite numbers"
    _assert_images_apart(backbone, images, features)
    _assert_trains(backbone, features)
    _assert_odd_canvas(backbone, images)


def _assert_images_apart(backbone: nn.Module, images: Tensor, features: Tensor) -> None:
    with torch.no_grad():
        alone = backbone(images[:1])
    close = torch.allclose(alone, features[:1], rtol=1e-3, atol=1e-3 * float(features.detach().abs().max()))
    assert close, "features depend on the other images of the batch, or on chance; freeze batch normalisation"


def _assert_trains(backbone: nn.Module, features: Tensor) -> None:
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True) if parameters else ()
    names = [name for name, p in backbone.named_parameters() if p.requires_grad]
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    assert not unused, f"no gradient reaches {', '.join(unused)}; freeze what is not used: requires_grad_(False)"


def _assert_odd_canvas(backbone: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        height, width = backbone(images[:1, :, :-1, :-1]).shape[-2:]
    assert height in (1, 2) and width in (2, 3), f"a pixel less makes {height} x {width} cells of 2 x 3"
