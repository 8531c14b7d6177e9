"""Records -> batches of static shape: grouped by canvas, shuffled, sharded by rank, decoded in worker processes."""

import atexit
import logging
import os
import signal
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from rcnn.data.batches import BatchMaker, Made, OnBadImage, to_tensors
from rcnn.data.canvases import choose_canvases
from rcnn.data.epoch import EpochPlan, Flip, plan_epoch
from rcnn.data.handover import Order, Parcel, SharedMaker
from rcnn.data.proposals import ProposalTable
from rcnn.data.records import Dataset, require_boxes
from rcnn.structures import Batch, Limits

logger = logging.getLogger("rcnn.data")
AHEAD = 2  # batches that each worker has made or is making before they are asked for


class Loader:
    """Batches of a data set, epoch by epoch; the batch of a step depends on (seed, epoch, step) only.

    All batches are full, since shapes are static. A canvas whose images do not fill its last batch takes some of them
    once more when shuffling (training); otherwise (evaluation) the places left over are empty: a black canvas with
    image_index -1, so that no image counts twice. Images without boxes stay in.

    Args:
        batch: images of a step, of all processes together.
        flip: none; random: a coin per image; both: an epoch holds each image and its mirror image.
        workers: processes that decode; 0: in this process. They live until `close` or the loader's end.
        sides: (short, long) of multi-scale training, for which the limits were measured; each batch draws one of them.
            Empty: `short` and `long`.
        proposals: of every image, at most `limits.proposals` of each; None: the batches have none.
        drop_last: leave out the last batches instead of filling them up.
        rank, world: this process and how many share the epoch. When shuffling (training) each takes `places` of every
            step, some of them empty if that is more than the batch has; otherwise (evaluation) each takes whole steps
            in turn, so that every batch is the same for any number of processes.
        places: of a process in a step of training; 0: as many as it takes.
        on_bad_image: error: ValueError; blank: log the message and leave the image's place empty.

    Raises:
        ValueError: if an image has more boxes than the limits have slots, if the batch does not suit the canvases, if
            no batch is left, or if a set to train on (shuffle) has no box.
    """

    def __init__(
        self,
        dataset: Dataset,
        limits: Limits,
        *,
        batch: int,
        short: int,
        long: int,
        offset: float,
        flip: Flip,
        shuffle: bool,
        seed: int,
        workers: int,
        sides: tuple[tuple[int, int], ...] = (),
        proposals: ProposalTable | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        places: int = 0,
        on_bad_image: OnBadImage = "error",
    ):
        places = places or -(-batch // world)
        assert places * world >= batch, (places, world, batch)
        _check_limits(dataset, limits, min(batch, places) if shuffle else batch)
        assert proposals is None or int(proposals.num_boxes.max(initial=0)) <= limits.proposals
        if shuffle:
            require_boxes(dataset)
        self.dataset, self.limits, self.batch = dataset, limits, batch
        sides = sides or ((short, long),)
        self._maker = BatchMaker(
            dataset, limits, sides=sides, offset=offset, proposals=proposals, on_bad_image=on_bad_image
        )
        canvas_of = np.zeros(len(dataset), np.int64)  # exact: one group of all images
        groups = len(limits.canvases) // len(sides) or 1
        if limits.canvases:
            short, long = sides[0]
            canvas_of = choose_canvases(dataset.sizes, limits.canvases[:groups], short=short, long=long)
        self._whole = partial(
            plan_epoch, canvas_of, batch=batch, flip=flip, shuffle=shuffle, drop_last=drop_last, seed=seed,
            scales=len(sides), groups=groups,
        )  # fmt: skip
        self._share = (rank, world, places if shuffle else 0)
        self.steps_of_all = len(self._whole(epoch=0).canvas)
        if not self.steps_of_all:
            raise ValueError(f"{dataset.name}: its {len(dataset)} images fill no batch of {batch}; use less")
        self._steps = len(self._plan(epoch=0).canvas)
        self._workers = _Workers(self._maker, workers, places if shuffle else batch) if workers else None
        self._current = 0  # number of the latest epoch iterator; the workers serve one at a time

    def __len__(self) -> int:
        """Steps of this process in an epoch."""
        return self._steps

    def epoch(self, index: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `start_step` on; one epoch can be under way at a time.

        Raises:
            ValueError: naming the image file that cannot be read.
        """
        self._current += 1
        number = self._current
        plan = self._plan(epoch=index)
        here = map(self._maker.make, plan.batches(start_step))
        for result in self._workers.epoch(plan, start_step) if self._workers else here:
            yield _unwrap(result)
            if number != self._current:
                raise RuntimeError("another epoch of this loader was begun; finish one before the next")

    def _plan(self, *, epoch: int) -> EpochPlan:
        (rank, world, places), whole = self._share, self._whole(epoch=epoch)
        return whole.places(rank * places, places) if places else whole.every(rank, world)

    def close(self) -> None:
        """Ends the worker processes; an epoch that is under way cannot go on."""
        if self._workers:
            self._workers.close()
        self._workers = None


class _Workers:
    """The processes that make batches, a fixed number of steps ahead of the loop."""

    def __init__(self, maker: BatchMaker, workers: int, batch: int):
        # one place more than can be ordered: the batch that is being received has its place too
        self._maker = SharedMaker(maker, places=workers * AHEAD + 1, batch=batch)
        self._orders = _Orders(self._maker.places)
        self._processes: DataLoader | None = DataLoader(
            self._maker,  # pyright: ignore[reportArgumentType]: indexed by __getitems__ only
            batch_sampler=self._orders,  # pyright: ignore[reportArgumentType]: an index is an Order
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # leaves the global one as it is
            prefetch_factor=AHEAD,
            persistent_workers=True,
        )
        self._results: Iterator[Parcel] | None = None  # which nobody else holds: the processes end with it
        _RUNNING.add(self)

    def epoch(self, plan: EpochPlan, start: int) -> Iterator[Made]:
        assert self._processes is not None
        self._orders.plan, self._orders.start = plan, start
        self._results = iter(self._processes)
        for _ in range(start, len(plan.canvas)):
            if self._results is None:
                raise RuntimeError("the loader was closed")
            yield self._maker.receive(next(self._results))

    def close(self) -> None:
        self._processes = self._results = None


_RUNNING: weakref.WeakSet[_Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Python would end what is left with a signal, which they ignore, and wait for them for ever."""
    for workers in list(_RUNNING):
        workers.close()


class _Orders(Iterable[Order]):
    """The batch sampler: what is ordered next, each step in the next place."""

    def __init__(self, places: int):
        self._places = places
        self.plan: EpochPlan | None = None
        self.start = 0

    def __iter__(self) -> Iterator[Order]:
        assert self.plan is not None
        return map(Order, self.plan.batches(self.start), cycle(range(self._places)))


def _unwrap(made: Made) -> Batch:
    if made.arrays is None:
        raise ValueError(made.problems[0])
    for problem in made.problems:
        logger.warning("left out: %s", problem)
    return to_tensors(made.arrays)


def _as_it_is(made: Any) -> Any:
    return made


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, _ignore_once)
    if hasattr(os, "setpgrp"):  # a signal to the group is for the loop, which needs the workers until it has saved
        os.setpgrp()


def _ignore_once(number: int, frame: object) -> None:
    """Schedulers ask every process to end, but the loop needs its workers until it has saved, and ends them itself."""
    signal.signal(number, signal.SIG_DFL)


def _check_limits(dataset: Dataset, limits: Limits, batch: int) -> None:
    if not len(dataset):
        raise ValueError(f"{dataset.name}: the set has no image; choose another")
    if batch < 1:
        raise ValueError(f"a batch of {batch} images is not possible; use at least 1")
    if not limits.canvases and batch > 1:
        raise ValueError(
            f"a batch of {batch} images needs canvases of one size; use a batch of 1 with --data.canvas exact, "
            f"or --data.canvas grouped"
        )
    fullest = int(dataset.num_boxes.argmax())
    if dataset.num_boxes[fullest] > limits.ground_truth:
        raise ValueError(
            f"{dataset[fullest].path}: has {dataset.num_boxes[fullest]} boxes, but an image may have "
            f"{limits.ground_truth}; set --data.max_boxes {dataset.num_boxes[fullest]} (or 0 to measure it)"
        )
