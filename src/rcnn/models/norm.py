"""Batch normalisation with fixed statistics; `layers.convolve` folds it into the convolution before it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
