import pytest
import torch
from torch import Tensor

from rcnn.ops.sampling import keep_some, pick, random_keys

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The finaliser of SplitMix64 in plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def seeds(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1])
def test_definition_by_unsigned_integers(seed: int) -> None:
    golden = 0x9E3779B97F4A7C15
    start = splitmix64((splitmix64((seed + golden) & MASK) + 2) & MASK)
    expected = [((splitmix64((start + i * golden) & MASK) >> 40) + 1) / 2**24 for i in range(1, 6)]
    assert random_keys(seeds(seed), 5, stream=2)[0].tolist() == expected


def test_keys_are_uniform_and_never_0() -> None:
    keys = random_keys(seeds(3), 50_000, stream=0)[0]
    assert keys.min() > 0 and keys.max() <= 1
    counts = torch.histc(keys, 20, 0, 1)
    assert (counts - 2500).abs().max() < 250  # five standard deviations


def test_a_row_depends_on_its_own_seed_only() -> None:
    together = random_keys(seeds(5, 6, 7), 40, stream=1)
    assert torch.equal(together[1:2], random_keys(seeds(6), 40, stream=1))
    assert torch.equal(together[:, :10], random_keys(seeds(5, 6, 7), 10, stream=1))


def test_seeds_and_streams_are_independent() -> None:
    rows = torch.cat([random_keys(torch.arange(20), 2000, stream=stream) for stream in range(3)])
    correlation = torch.corrcoef(rows) - torch.eye(60)
    assert correlation.abs().max() < 0.12  # five standard deviations


def test_dropout_keeps_its_share_and_depends_on_seed_and_stream() -> None:
    for dropped in (0.0, 0.25, 0.5):
        kept = keep_some(torch.arange(3), 10_001, stream=3, dropped=dropped)
        assert kept.shape == (3, 10_001)
        assert (kept.float().mean(1) - (1 - dropped)).abs().max() < 0.025  # five standard deviations
    assert torch.equal(kept[1:2], keep_some(torch.tensor([1]), 10_001, stream=3, dropped=0.5))
    for other in (kept[0], keep_some(torch.tensor([1]), 10_001, stream=4, dropped=0.5)[0]):
        assert 0.45 < (kept[1] == other).float().mean() < 0.55


def test_definition_of_pick() -> None:
    candidates = torch.tensor([[True, True, False, True], [False, True, False, False], [True] * 4])
    keys = torch.tensor([[0.1, 0.3, 0.9, 0.2], [0.5] * 4, [0.4, 0.3, 0.2, 0.1]])
    picked = pick(candidates, keys, most=2, count=torch.tensor([2, 2, 1]))
    assert picked.tolist() == [[False, True, False, True], [False, True, False, False], [True, False, False, False]]


@pytest.mark.parametrize("most", [0, 3, 10, 1000])
def test_pick_takes_candidates_only_and_as_many_as_it_can(most: int) -> None:
    candidates = torch.rand(8, 50) < torch.linspace(0, 1, 8)[:, None]
    count = torch.randint(0, 20, (8,))
    picked = pick(candidates, torch.rand(8, 50).clamp(min=0.01), most=most, count=count)
    assert not (picked & ~candidates).any()
    expected = torch.minimum(count.clamp(max=most), candidates.sum(1))
    assert picked.sum(1).tolist() == expected.tolist()


def test_every_candidate_is_picked_equally_often() -> None:
    candidates = torch.tensor([[True, False, True, True, True]]).expand(4000, 5)
    keys = random_keys(torch.arange(4000), 5, stream=0)
    often = pick(candidates, keys, most=2, count=torch.full((4000,), 2)).float().mean(0)
    assert often[1] == 0
    assert (often[[0, 2, 3, 4]] - 0.5).abs().max() < 0.04  # five standard deviations
