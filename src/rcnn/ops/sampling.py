"""Random choice of a fixed number of candidates, without changing shapes and without asking the host.

Randomness is a hash of (seed, stream, position): the same on every device, for every split over processes, and in
compiled code.
"""

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def random_keys(seed: Int64[Tensor, "B"], count: int, *, stream: int) -> Float32[Tensor, "B n"]:
    """Uniform numbers in [2^-24, 1], a row per seed; rows of different streams are independent.

    Source: the SplitMix64 generator (Steele, Lea, Flood 2014).
    """
    bits = _shift_right(_random_bits(seed, count, stream), 40)
    return (bits.to(torch.float32) + 1) * 2.0**-24


def keep_some(seed: Int64[Tensor, "B"], count: int, *, stream: int, dropped: float) -> Bool[Tensor, "B n"]:
    """A mask of dropout for each seed: False with probability `dropped`, which is rounded to a 65536th."""
    bits = _random_bits(seed, -(-count // 4), stream).view(torch.int16)[:, :count]  # four numbers of each 64 bits
    return bits >= round(dropped * 2**16) - 2**15


def _random_bits(seed: Int64[Tensor, "B"], count: int, stream: int) -> Int64[Tensor, "B n"]:
    position = torch.arange(1, count + 1, device=seed.device, dtype=torch.int64)
    start = _mix(_mix(seed + _GOLDEN) + stream)
    return _mix(start[:, None] + position[None] * _GOLDEN)


def pick(
    candidates: Bool[Tensor, "B N"], keys: Float32[Tensor, "B N"], *, most: int, count: Int64[Tensor, "B"]
) -> Bool[Tensor, "B N"]:
    """A random subset of the candidates: `count` of them a row, all where there are fewer; never above `most`."""
    most = min(most, candidates.shape[1])
    value, index = torch.where(candidates, keys, -1.0).topk(most, dim=1)
    taken = (value > 0) & (torch.arange(most, device=keys.device)[None] < count[:, None])
    return torch.zeros_like(candidates).scatter(1, index, taken)
