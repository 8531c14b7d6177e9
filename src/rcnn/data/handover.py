"""Batches from worker processes to the loader: pictures through memory that both see, the rest through a pipe.

Tensors sent one by one cost a file descriptor and a connection each; a batch's eleven take longer than its decoding.
"""

import math
import multiprocessing
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from rcnn.data.batches import BatchMaker, Made
from rcnn.data.epoch import Item

NOTHING = np.zeros(0, np.uint8)


class Order(NamedTuple):
    """What a worker is asked for."""

    items: list[Item]
    place: int  # in the shared memory, where the pictures shall lie


class Parcel(NamedTuple):
    """What a worker hands back."""

    made: Made  # its arrays without the pictures
    place: int
    shape: tuple[int, ...]  # of the pictures


class SharedMaker:
    """Makes batches in worker processes; a torch data set whose index is an Order.

    A place may be ordered again once `receive` has returned what lay in it.

    Args:
        places: batches that can be under way.
        batch: images of each.
    """

    def __init__(self, maker: BatchMaker, *, places: int, batch: int):
        self._maker, self.places = maker, places
        self._size = batch * maker.largest_canvas() * 3
        self._memory = multiprocessing.RawArray("B", places * self._size)

    def __len__(self) -> int:
        return len(self._maker.dataset)

    def __getitems__(self, order: Order) -> Parcel:
        """Called in a worker process."""
        arrays, problems = self._maker.make(order.items, self._at(order.place))
        if arrays is None:
            return Parcel(Made(None, problems), order.place, ())
        return Parcel(Made(arrays._replace(images=NOTHING), problems), order.place, arrays.images.shape)

    def receive(self, parcel: Parcel) -> Made:
        """The batch in memory of its own; called in the loader's process."""
        arrays, problems = parcel.made
        if arrays is None:
            return parcel.made
        images = self._at(parcel.place)[: math.prod(parcel.shape)].reshape(parcel.shape).copy()
        return Made(arrays._replace(images=images), problems)

    def _at(self, place: int) -> UInt8[np.ndarray, "n"]:
        return np.frombuffer(self._memory, np.uint8, self._size, place * self._size)
