import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.batches import BatchMaker, Made
from rcnn.data.epoch import Item
from rcnn.data.handover import Order, Parcel, SharedMaker
from rcnn.data.records import RecordTable
from rcnn.structures import Canvas, Limits

CANVASES = (Canvas(32, 64), Canvas(64, 32))


@pytest.fixture
def maker(make_table: Callable[..., RecordTable]) -> BatchMaker:
    table = make_table([(15, 20), (20, 15), (15, 20), (20, 15)])
    return BatchMaker(table, Limits(5, CANVASES), sides=((30, 60),), offset=1.0, proposals=None, on_bad_image="error")


def ordered(*indices: int, place: int, canvas: int = 0) -> Order:
    return Order([Item(index, False, 7, canvas) for index in indices], place)


def through_the_pipe(parcel: Parcel) -> Parcel:
    return pickle.loads(pickle.dumps(parcel))


def assert_same(a: Made, b: Made) -> None:
    assert a.arrays is not None and b.arrays is not None and a.problems == b.problems
    assert all(np.array_equal(x, y) for x, y in zip(a.arrays, b.arrays, strict=True))


def test_what_is_received_is_what_was_made(maker: BatchMaker) -> None:
    shared = SharedMaker(maker, places=2, batch=2)
    orders = [ordered(0, 2, place=0), ordered(3, place=1, canvas=1)]
    parcels = [through_the_pipe(shared.__getitems__(order)) for order in orders]
    for order, parcel in zip(orders, parcels, strict=True):
        assert_same(shared.receive(parcel), maker.make(order.items))


def test_no_picture_goes_through_the_pipe(maker: BatchMaker) -> None:
    parcel = SharedMaker(maker, places=1, batch=2).__getitems__(ordered(0, 2, place=0))
    assert len(pickle.dumps(parcel)) < 32 * 64 and parcel.shape == (2, 32, 64, 3)


def test_a_place_can_be_ordered_again_once_received(maker: BatchMaker) -> None:
    shared = SharedMaker(maker, places=1, batch=2)
    first = shared.receive(shared.__getitems__(ordered(0, 2, place=0)))
    shared.receive(shared.__getitems__(ordered(1, 3, place=0, canvas=1)))
    assert_same(first, maker.make(ordered(0, 2, place=0).items))


def test_a_failure_goes_through(maker: BatchMaker) -> None:
    Path(maker.dataset[1].path).unlink()
    shared = SharedMaker(maker, places=1, batch=2)
    made = shared.receive(through_the_pipe(shared.__getitems__(ordered(1, 3, place=0, canvas=1))))
    assert made.arrays is None and "1.png: no such image file" in made.problems[0]
