"""The second stage: what turns the pooled features of a RoI into class logits and box deltas."""

from jaxtyping import Float, Float32, Int64, Real
from torch import Tensor, nn

from rcnn.models.layers import LowRank, activate, dense
from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.resnet import DEPTHS, make_layer
from rcnn.models.resnet_v2 import EPS, stage_units
from rcnn.ops.sampling import keep_some


class RoiHead(nn.Module):
    """Base of the heads: an embedding of each RoI, then one linear layer for classes and one for boxes.

    `bbox_pred` has four outputs for each class and for background, as in Fast R-CNN.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * (num_classes + 1))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def embed(self, x: Float[Tensor, "n F s s"], seed: Int64[Tensor, "B"] | None = None) -> Float[Tensor, "n E"]:
        """A vector for each RoI.

        Args:
            seed: of each image, from which a head derives what it does at random in training; the n RoIs are as many
                of each. So it is the same for every split of a batch over processes. None: nothing is random.
        """
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "n F s s"], seed: Int64[Tensor, "B"] | None = None
    ) -> tuple[Float32[Tensor, "n K"], Float32[Tensor, "n 4*K"]]:
        embedded = self.embed(x, seed)
        return dense(embedded, self.cls_score).float(), dense(embedded, self.bbox_pred).float()


class FCHead(RoiHead):
    """Two fully connected layers, fc6 and fc7. Source: Fast R-CNN 2.1.

    Args:
        svd: ranks of fc6 and fc7, then of two layers each; empty: whole layers.
    """

    def __init__(
        self, channels: int, size: int, *, hidden: int, dropout: float, num_classes: int, svd: tuple[int, ...] = ()
    ) -> None:
        super().__init__(hidden, num_classes)
        self.dropout = dropout
        self.fc6, self.fc7 = (
            LowRank(inputs, svd[i], hidden) if svd else nn.Linear(inputs, hidden)
            for i, inputs in enumerate((channels * size * size, hidden))
        )
        for name, parameter in (*self.fc6.named_parameters(), *self.fc7.named_parameters()):
            if name.endswith("weight"):
                nn.init.kaiming_uniform_(parameter, a=1)
            else:
                nn.init.zeros_(parameter)

    def embed(self, x: Float[Tensor, "n F s s"], seed: Int64[Tensor, "B"] | None = None) -> Float[Tensor, "n E"]:
        x = self._drop(dense(x, self.fc6, relu=True), seed, stream=3)
        return self._drop(dense(x, self.fc7, relu=True), seed, stream=4)

    def _drop(self, x: Real[Tensor, "n E"], seed: Tensor | None, *, stream: int) -> Real[Tensor, "n E"]:
        """Dropout; streams 0 to 2 are those of the sampling of anchors and RoIs."""
        if seed is None or not self.training or not self.dropout:
            return x
        kept = keep_some(seed, x.numel() // len(seed), stream=stream, dropped=self.dropout).view_as(x)
        return kept * x / (1 - self.dropout)


def mean_of_places(x: Float[Tensor, "n F s s"]) -> Float[Tensor, "n F"]:
    """The mean over height and width, whose gradient has the channels last in memory as all maps have."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)


class Layer4Head(RoiHead):
    """The last stage of a ResNet, averaged over the RoI. Source: He et al. 2016, appendix A."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__(512 * DEPTHS[depth][0].expansion, num_classes)
        self.layer4 = make_layer(depth, 4)

    def embed(self, x: Float[Tensor, "n F s s"], seed: Int64[Tensor, "B"] | None = None) -> Float[Tensor, "n E"]:
        return mean_of_places(self.layer4(x))


class Stage4HeadV2(RoiHead):
    """The last stage of MXNet's pre-activation ResNet, normalised and averaged over the RoI."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__(2048, num_classes)
        self.unit_names = []
        for name, unit in stage_units(depth, 4).items():
            self.add_module(name, unit)
            self.unit_names.append(name)
        self.bn1 = FrozenBatchNorm(2048, eps=EPS)

    def embed(self, x: Float[Tensor, "n F s s"], seed: Int64[Tensor, "B"] | None = None) -> Float[Tensor, "n E"]:
        for name in self.unit_names:
            x = self.get_submodule(name)(x)
        return mean_of_places(activate(x, self.bn1))
