from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.epoch import EpochPlan, Item, hash_positions, plan_epoch

OPTIONS: dict[str, Any] = {
    "batch": 4, "flip": "none", "shuffle": True, "drop_last": False, "seed": 0, "epoch": 0,
}  # fmt: skip
CANVASES = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


def plan(canvas_of: np.ndarray, **options: Any) -> EpochPlan:
    return plan_epoch(canvas_of, **{**OPTIONS, **options})


def equal(a: EpochPlan, b: EpochPlan) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(CANVASES, st.integers(1, 9), st.sampled_from(["none", "random", "both"]), st.booleans())
def test_every_image_is_seen(canvas_of: np.ndarray, batch: int, flip: Any, shuffle: bool) -> None:
    """Every image (and its mirror) is seen, once, or where a batch was filled up, more often."""
    made = plan(canvas_of, batch=batch, flip=flip, shuffle=shuffle)
    index, flips = made.index, made.flip
    assert index.shape == (len(made.canvas), batch)
    real = index >= 0
    steps = np.broadcast_to(made.canvas[:, None], index.shape)
    assert (canvas_of[index[real]] == steps[real]).all()
    seen = np.bincount(index[real] * 2 + (flips[real] if flip == "both" else 0), minlength=2 * len(canvas_of))
    wanted = seen if flip == "both" else seen[::2]
    assert wanted.min() >= 1
    if shuffle:
        assert real.all()
    else:
        assert wanted.max() == 1
    assert len(index) == sum(
        -(-len(canvas_of[canvas_of == c]) * (1 + (flip == "both")) // batch) for c in set(canvas_of.tolist())
    )


@given(CANVASES, st.integers(0, 2**70), st.integers(0, 50))
def test_depends_on_seed_and_epoch_alone(canvas_of: np.ndarray, seed: int, epoch: int) -> None:
    assert equal(plan(canvas_of, seed=seed, epoch=epoch), plan(canvas_of, seed=seed, epoch=epoch))


def test_epochs_and_seeds_differ() -> None:
    canvas_of = np.zeros(100, np.int64)
    plans = [plan(canvas_of), plan(canvas_of, epoch=1), plan(canvas_of, seed=1), plan(canvas_of, seed=-1)]
    orders = {p.index.tobytes() for p in plans}
    seeds = np.concatenate([p.seed for p in plans])
    assert len(orders) == 4 and len(np.unique(seeds)) == seeds.size


@pytest.mark.parametrize("batch", [1, 4])
def test_images_and_batches_are_shuffled(batch: int) -> None:
    """mx-rcnn never shuffled batches of one image: an epoch was all landscape, then all portrait pictures."""
    canvas_of = np.repeat([0, 1], 100)
    shuffled = plan(canvas_of, batch=batch)
    assert (np.diff(shuffled.canvas) != 0).sum() > 10
    first = shuffled.index[shuffled.canvas == 0].ravel()
    assert not np.array_equal(first, np.sort(first))


def test_evaluation_keeps_the_order_and_leaves_places_empty() -> None:
    ordered = plan(np.array([1, 0, 1, 0, 0]), shuffle=False, batch=2)
    assert ordered.index.tolist() == [[1, 3], [4, -1], [0, 2]] and ordered.canvas.tolist() == [0, 0, 1]
    assert not ordered.flip.any()


def test_drop_last_leaves_out_part_batches() -> None:
    canvas_of = np.array([0] * 9 + [1] * 3)
    assert plan(canvas_of, drop_last=True).index.shape == (2, 4)
    assert plan(canvas_of).index.shape == (4, 4)


def test_a_coin_decides_random_flips() -> None:
    flips = plan(np.zeros(4000, np.int64), flip="random").flip
    assert 0.45 < flips.mean() < 0.55


@given(CANVASES, st.integers(1, 9), st.integers(1, 4), st.integers(0, 2))
def test_processes_share_every_step_in_its_order(canvas_of: np.ndarray, batch: int, world: int, more: int) -> None:
    whole, places = plan(canvas_of, batch=batch, flip="random"), -(-batch // world) + more
    shares = [whole.places(rank * places, places) for rank in range(world)]
    for share in shares:
        assert share.index.shape == (len(whole.canvas), places) and np.array_equal(share.canvas, whole.canvas)
    for name in ("index", "flip", "seed"):
        joined = np.concatenate([getattr(share, name) for share in shares], 1)
        assert np.array_equal(joined[:, :batch], getattr(whole, name))
        assert (joined[:, batch:] == (-1 if name == "index" else 0)).all()


@given(CANVASES, st.integers(1, 4), st.integers(1, 5))
def test_processes_take_whole_steps_in_turn(canvas_of: np.ndarray, batch: int, world: int) -> None:
    whole = plan(canvas_of, batch=batch, shuffle=False)
    turns = [whole.every(rank, world) for rank in range(world)]
    assert sum(len(each.canvas) for each in turns) == len(whole.canvas)
    for step in range(len(whole.canvas)):
        mine = turns[step % world]
        assert all(np.array_equal(x[step // world], y[step]) for x, y in zip(mine, whole, strict=True))


def test_batches_start_where_asked() -> None:
    made = plan(np.array([0, 0, 1, 1, 1]), batch=2)
    items = list(made.batches(0))
    assert list(made.batches(2)) == items[2:] and list(made.batches(3)) == []
    assert items[1][1] == Item(made.index[1, 1], made.flip[1, 1], made.seed[1, 1], made.canvas[1])


def test_hashes_are_spread() -> None:
    numbers = hash_positions(3, 5, np.arange(4096))
    assert (numbers >= 0).all() and len(np.unique(numbers)) == 4096
    bits = (numbers[:, None] >> np.arange(63) & 1).mean(0)
    assert ((bits > 0.4) & (bits < 0.6)).all()


@given(CANVASES, st.integers(1, 4))
def test_scales_move_whole_steps_and_nothing_else(canvas_of: np.ndarray, scales: int) -> None:
    one = plan(canvas_of, groups=4)
    several = plan(canvas_of, scales=scales, groups=4)
    assert np.array_equal(several.canvas % 4, one.canvas) and several.canvas.max() < 4 * scales
    assert equal(several._replace(canvas=one.canvas), one)


def test_all_scales_are_drawn_evenly() -> None:
    canvas = plan(np.zeros(4000, np.int64), scales=4, groups=1).canvas
    assert np.abs(np.bincount(canvas, minlength=4) - 250).max() < 60
