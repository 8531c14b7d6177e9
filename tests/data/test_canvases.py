from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.canvases import choose_canvases, measure_limits
from rcnn.data.transforms import resize_scales, resized_sizes
from rcnn.data.voc import load_voc
from rcnn.structures import Canvas, Limits


def dataset(sizes: list[tuple[int, int]], boxes: int = 3):
    """As much of a data set as is measured."""
    return SimpleNamespace(
        name="x",
        classes=("a",),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        num_boxes=np.full(len(sizes), boxes),
        __len__=lambda: len(sizes),
        __getitem__=lambda index: None,
    )


def measure(sizes: list[tuple[int, int]], **options) -> Limits:
    return measure_limits(dataset(sizes), **{"short": 600, "long": 1000, "multiple": 32, **options})


SIZES = st.lists(st.tuples(st.integers(100, 900), st.integers(100, 900)), min_size=1, max_size=30)


def test_sides_are_rounded_up() -> None:
    assert measure([(375, 500)] * 3).canvases == (Canvas(608, 800),)
    assert measure([(500, 375)] * 3).canvases == (Canvas(800, 608),)
    assert measure([(375, 500), (500, 375)], multiple=1).canvases == (Canvas(600, 800), Canvas(800, 600))


def test_each_orientation_has_its_canvases() -> None:
    sizes = [(300, width) for width in (300, 400, 450, 500)] + [(400, 300)]
    limits = measure(sizes, per_orientation=2, multiple=1)
    assert limits.canvases[-1] == Canvas(800, 600) and len(limits.canvases) == 3


def test_slots_hold_the_fullest_image() -> None:
    assert measure([(375, 500)]).ground_truth == 3
    assert measure([(375, 500)], max_boxes=20).ground_truth == 20
    assert measure_limits(dataset([(9, 9)], boxes=0), short=9, long=9, multiple=1).ground_truth == 1


def test_exact_has_no_canvases() -> None:
    assert measure([(375, 500)], canvas="exact") == Limits(3, ())


@given(SIZES, st.integers(1, 3), st.sampled_from([1, 32]))
def test_every_image_fits_its_canvas(sizes: list[tuple[int, int]], count: int, multiple: int) -> None:
    limits = measure(sizes, per_orientation=count, multiple=multiple)
    array = np.array(sizes)
    chosen = np.array(limits.canvases)[choose_canvases(array, limits.canvases, short=600, long=1000)]
    needed = resized_sizes(array, resize_scales(array, short=600, long=1000))
    assert (needed <= chosen).all() and (chosen % multiple == 0).all()
    assert len(limits.canvases) <= 2 * count


@given(st.lists(st.integers(60, 100), min_size=1, max_size=25), st.integers(1, 3))
def test_padding_is_the_least_possible(widths: list[int], count: int) -> None:
    """Against all choices of `count` widths; the pictures are 60 high."""
    limits = measure([(60, width) for width in widths], per_orientation=count, multiple=1, short=60, long=100)
    sides = sorted({*widths})
    totals = []
    for others in combinations(sides[:-1], min(count, len(sides)) - 1):
        canvases = np.array(sorted({*others, sides[-1]}))
        totals.append(int(canvases[np.searchsorted(canvases, widths)].sum()))
    array = np.array([(60, width) for width in widths])
    chosen = choose_canvases(array, limits.canvases, short=60, long=100)
    assert sum(limits.canvases[i].width for i in chosen) == min(totals)


def test_an_image_too_large_for_all_takes_the_one_on_which_it_shrinks_least() -> None:
    canvases = (Canvas(100, 160), Canvas(100, 130), Canvas(160, 100))
    sizes = np.array([(100, 120), (100, 150), (100, 200), (200, 100), (100, 100)])
    assert choose_canvases(sizes, canvases, short=100, long=200).tolist() == [1, 0, 0, 2, 1]


@pytest.mark.parametrize("canvas", ["grouped", "exact"])
def test_real_sizes(shared: Path, canvas) -> None:
    table = load_voc(shared / "data" / "voc2007", "trainval", offset=1.0)
    limits = measure_limits(table, short=600, long=1000, multiple=32, canvas=canvas)
    assert limits.ground_truth == table.num_boxes.max()
    assert len(limits.canvases) == (6 if canvas == "grouped" else 0)


@given(SIZES)
def test_several_sides_keep_the_groups_of_the_first(sizes: list[tuple[int, int]]) -> None:
    sides = ((600, 1000), (480, 800), (704, 1200))
    base, limits = measure(sizes).canvases, measure(sizes, sides=sides).canvases
    assert limits[: len(base)] == base and len(limits) == 3 * len(base)
    group = choose_canvases(np.array(sizes), base, short=600, long=1000)
    for i, (short, long) in enumerate(sides):
        placed = resized_sizes(np.array(sizes), resize_scales(np.array(sizes), short=short, long=long))
        assert (placed <= np.array(limits[i * len(base) :])[group]).all()


def test_one_side_alone_is_no_multi_scale() -> None:
    assert measure([(375, 500)], sides=((600, 1000),)) == measure([(375, 500)])
    assert measure([(375, 500)], sides=((600, 1000), (300, 500)), canvas="exact") == Limits(3, ())
