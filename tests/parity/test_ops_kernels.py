"""NMS and RoIPool against the values of MXNet's operators, with every implementation."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.ops.nms import nms
from rcnn.ops.roi import roi_pool
from tests.ops.conftest import kernels  # noqa: F401


@pytest.fixture(scope="module")
def golden(shared: Path) -> Mapping[str, np.ndarray]:
    return np.load(shared / "golden" / "ops.npz")


def by_image(rois: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, R, 4) of rows (image, x1, y1, x2, y2), padded with zeros, and where each row went in (B * R)."""
    image = rois[:, 0].long()
    most = int(torch.bincount(image).max())
    rank = torch.stack([(image[:i] == image[i]).sum() for i in range(len(image))])
    slot = image * most + rank
    boxes = torch.zeros(int(image.max() + 1) * most, 4)
    boxes[slot] = rois[:, 1:]
    return boxes.view(-1, most, 4), slot


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.usefixtures("kernels")
def test_nms_keeps_what_mxnet_keeps(golden: Mapping[str, np.ndarray], threshold: float) -> None:
    detections = torch.from_numpy(golden["nms.dets"])[None]
    valid = torch.ones(detections.shape[:2], dtype=torch.bool)
    index, kept = nms(
        detections[..., :4], detections[..., 4], valid, iou_threshold=threshold, k=valid.shape[1], offset=1.0
    )
    assert index[kept].tolist() == golden[f"nms.keep_{threshold}"].tolist()


@pytest.mark.usefixtures("kernels")
def test_roi_pool_is_mxnets(golden: Mapping[str, np.ndarray]) -> None:
    features = torch.from_numpy(golden["roi_pool.features"]).requires_grad_()
    boxes, slot = by_image(torch.from_numpy(golden["roi_pool.rois"]))
    out = roi_pool(features, boxes, output_size=7, spatial_scale=1 / 16)[slot]
    np.testing.assert_allclose(out.detach().numpy(), golden["roi_pool.out"], rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(out, features, torch.from_numpy(golden["roi_pool.grad_out"]))
    np.testing.assert_allclose(grad.numpy(), golden["roi_pool.grad_features"], rtol=1e-4, atol=1e-4)
