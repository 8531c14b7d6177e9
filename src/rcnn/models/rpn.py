"""The region proposal network: objectness and regression of every anchor."""

from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from rcnn.models.layers import convolve
from rcnn.ops.anchors import base_anchors, cells_on_image, grid_anchors
from rcnn.structures import RpnOutput


class RPN(nn.Module):
    """A 3x3 convolution and two 1x1 ones over the feature map.

    `cls` has 2a channels, the first a for background and the rest for object, as in MXNet's models.
    Source: Faster R-CNN 3.1, figure 3.

    Args:
        scales: anchor sides in units of the stride.
        ratios: height over width.
        partial_cells: cells only partly on the picture propose too.
    """

    base: Tensor

    def __init__(
        self,
        channels: int,
        *,
        hidden: int,
        scales: tuple[float, ...],
        ratios: tuple[float, ...],
        stride: int,
        offset: float,
        partial_cells: bool,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.partial_cells = partial_cells
        self.num_anchors = len(scales) * len(ratios)
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.cls = nn.Conv2d(hidden, 2 * self.num_anchors, 1)
        self.box = nn.Conv2d(hidden, 4 * self.num_anchors, 1)
        self.register_buffer("base", base_anchors(scales, ratios, stride=stride, offset=offset), persistent=False)
        for layer in (self.conv, self.cls, self.box):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "B F h w"], image_size: Int64[Tensor, "B 2"]) -> RpnOutput:
        hidden = convolve(features, self.conv, relu=True)
        batch, _, height, width = features.shape
        pair = _per_anchor(convolve(hidden, self.cls), 1).view(batch, height * width, 2, self.num_anchors)
        return RpnOutput(
            logits=(pair[:, :, 1] - pair[:, :, 0]).reshape(batch, -1),
            deltas=_per_anchor(convolve(hidden, self.box), 4),
            anchors=grid_anchors(self.base.float(), (height, width), stride=self.stride),
            anchors_valid=cells_on_image(
                image_size,
                (height, width),
                stride=self.stride,
                num_anchors=self.num_anchors,
                partial=self.partial_cells,
            ),
        )


def _per_anchor(x: Float[Tensor, "B c h w"], values: int) -> Float32[Tensor, "B n values"]:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values).float()
