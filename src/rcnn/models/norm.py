"""Batch normalisation with fixed statistics, folded into the convolution before it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by stored statistics; its weight and bias are not trained unless unfrozen.

    Args:
        fix_gamma: the weight counts as 1 whatever is stored (MXNet's option).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, fix_gamma: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.fix_gamma = fix_gamma
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The affine map that the normalisation is: y = x * scale + shift, per channel."""
        scale = (self.running_var + self.eps).rsqrt()
        if not self.fix_gamma:
            scale = scale * self.weight
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Float[Tensor, "B F h w"]) -> Float[Tensor, "B F h w"]:
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


def conv_norm(x: Float[Tensor, "B F h w"], conv: nn.Conv2d, norm: FrozenBatchNorm) -> Float[Tensor, "B E h2 w2"]:
    """`norm(conv(x))` as one convolution, with the normalisation multiplied into the weights."""
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
