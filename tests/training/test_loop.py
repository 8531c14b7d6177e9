import errno
import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.data.loader import Loader
from rcnn.data.records import Record, RecordTable
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch, Canvas, Limits
from rcnn.training.checkpoint import checkpoint_paths
from rcnn.training.log import SCALARS, Log, NonFiniteLossError
from rcnn.training.loop import StoppedError, train
from rcnn.training.losses import joint_loss
from rcnn.training.schedule import Schedule
from rcnn.training.step import TrainStep, sgd
from tests import tiny

IMAGES = 8  # four steps an epoch
TOTAL = 6
SCHEDULE = Schedule(lr=0.05, total=TOTAL, warmup=2, drops=(5,))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    """Random pictures of one canvas with no to two boxes each."""
    folder = tmp_path_factory.mktemp("pictures")
    records = []
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (*tiny.CANVAS, 3), np.uint8)
        assert cv2.imwrite(str(folder / f"{i}.png"), pixels)
        boxes, off = tiny.boxes(i, i % 3).numpy(), np.zeros(i % 3, np.bool_)
        labels, areas = np.arange(1, i % 3 + 1), np.ones(i % 3, np.float32)
        records.append(Record(f"{i}", str(folder / f"{i}.png"), *tiny.CANVAS, boxes, labels, off, areas, off))
    return RecordTable.from_records(records, "pictures", ("a", "b", "c"))


class Step(TrainStep):
    """A TrainStep to which something can happen; keeps the learning rates it was given."""

    def __init__(self, model: FasterRCNN, *, at: int = 0, happens: object = None) -> None:
        loss = partial(joint_loss, rules=tiny.rules())
        super().__init__(model.train(), loss, sgd(model, momentum=0.9, weight_decay=5e-4), clip=5.0, bf16=False)
        self.rates: list[float] = []
        self.at, self.happens = at, happens

    def __call__(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One update, after which something happens if it is the `at`th."""
        self.rates.append(lr)
        scalars = super().__call__(batch, lr)
        if len(self.rates) == self.at:
            scalars = self.happens(scalars) or scalars
        return scalars


def loader_of(dataset: RecordTable, workers: int = 0) -> Loader:
    limits = Limits(3, (Canvas(*tiny.CANVAS),))
    return Loader(
        dataset, limits, batch=2, short=64, long=96, offset=1.0, flip="random", shuffle=True, seed=5, workers=workers
    )


def run(folder: Path, dataset: RecordTable, step: Step, *, workers: int = 0, **changes: int) -> Step:
    options = {"save_every": 3, "keep": 2, "every": 1, "total": TOTAL} | changes
    log = Log(folder / "metrics.jsonl", every=options["every"], total=options["total"], name_image=lambda i: f"{i}.png")
    loader = loader_of(dataset, workers)
    schedule = SCHEDULE._replace(total=options["total"])
    kept = {key: options[key] for key in ("save_every", "keep")}
    try:
        train(step, loader, schedule, log, folder=folder / "checkpoints", **kept)
    finally:
        loader.close()
    return step


def fresh(dropout: float = 0.5, seed: int = 0, **happening: object) -> Step:
    """A step at its beginning, and the same random numbers to come."""
    step = Step(tiny.detector(dropout=dropout, seed=seed), **happening)
    torch.manual_seed(11)
    return step


def lines(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("step", "epoch", "lr", *SCALARS)} for row in rows]


def steps_saved(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in checkpoint_paths(folder / "checkpoints")]


def same(a: Step, b: Step) -> bool:
    momenta = [step.optimiser.state[p]["momentum_buffer"] for step in (a, b) for p in step.parameters]
    half = len(momenta) // 2
    weights = map(torch.equal, a.model.state_dict().values(), b.model.state_dict().values())
    return all(weights) and all(map(torch.equal, momenta[:half], momenta[half:]))


def kill(number: int) -> object:
    return lambda _: os.kill(os.getpid(), number)


def crash(_: object) -> None:
    raise MemoryError("the machine went down")


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: RecordTable) -> tuple[Path, Step]:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, dataset, fresh())


def test_definition_of_a_run(whole: tuple[Path, Step]) -> None:
    folder, step = whole
    assert step.rates == [SCHEDULE(i) for i in range(TOTAL)]
    rows = lines(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert [row["lr"] for row in rows] == step.rates
    assert steps_saved(folder) == [3, 6]


def test_the_loop_is_the_step_over_the_loaders_batches(whole: tuple[Path, Step], dataset: RecordTable) -> None:
    loader, by_hand = loader_of(dataset), fresh()
    batches = [*loader.epoch(0), *loader.epoch(1)][:TOTAL]
    for i, batch in enumerate(batches):
        by_hand(batch, SCHEDULE(i))
    assert same(whole[1], by_hand)


@pytest.mark.parametrize(("keep", "save_every", "saved"), [(1, 2, [6]), (3, 2, [2, 4, 6]), (2, 4, [4, 6])])
def test_checkpoints_kept(tmp_path: Path, dataset: RecordTable, keep: int, save_every: int, saved: list[int]) -> None:
    run(tmp_path, dataset, fresh(), keep=keep, save_every=save_every)
    assert steps_saved(tmp_path) == saved


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGINT, 3), (signal.SIGTERM, 4)])
def test_a_signal_saves_and_the_resumed_run_is_the_same_bit_for_bit(
    tmp_path: Path, whole: tuple[Path, Step], dataset: RecordTable, number: int, at: int
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match=rf"{signal.Signals(number).name} after step {at}; .*--resume"):
        run(tmp_path, dataset, fresh(at=at, happens=kill(number)))
    assert signal.getsignal(number) is handler
    assert steps_saved(tmp_path)[-1] == at
    other = fresh(seed=99)  # other weights and other random numbers, which the checkpoint must replace
    torch.manual_seed(77)
    resumed = run(tmp_path, dataset, other)
    assert len(resumed.rates) == TOTAL - at
    assert same(whole[1], resumed)
    assert lines(whole[0]) == lines(tmp_path)


def test_a_crash_loses_what_came_after_the_checkpoint_and_nothing_else(
    tmp_path: Path, whole: tuple[Path, Step], dataset: RecordTable
) -> None:
    with pytest.raises(MemoryError):
        run(tmp_path, dataset, fresh(at=5, happens=crash))
    assert steps_saved(tmp_path) == [3]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')  # the line that was being written
    resumed = run(tmp_path, dataset, fresh(seed=99))
    assert same(whole[1], resumed)
    assert lines(whole[0]) == lines(tmp_path)


def test_worker_processes_change_nothing(tmp_path: Path, whole: tuple[Path, Step], dataset: RecordTable) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, dataset, fresh(at=3, happens=kill(signal.SIGTERM)), workers=1)
    assert same(whole[1], run(tmp_path, dataset, fresh(seed=99), workers=1))


def test_a_signal_to_the_group_does_not_reach_the_workers(tmp_path: Path, dataset: RecordTable) -> None:
    groups = []

    def look(_: object) -> None:
        groups.extend(os.getpgid(worker.pid) for worker in multiprocessing.active_children())

    run(tmp_path, dataset, fresh(at=1, happens=look), workers=1, total=1)
    assert len(groups) == 1 and groups[0] != os.getpgid(0)


def test_resuming_without_a_checkpoint_begins(tmp_path: Path, dataset: RecordTable) -> None:
    assert len(run(tmp_path, dataset, fresh()).rates) == TOTAL


def test_resuming_a_finished_run_does_nothing(tmp_path: Path, dataset: RecordTable) -> None:
    step = run(tmp_path, dataset, fresh())
    before = lines(tmp_path)
    again = run(tmp_path, dataset, fresh(seed=99))
    assert again.rates == [] and same(step, again)
    assert lines(tmp_path) == before


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path, dataset: RecordTable) -> None:
    run(tmp_path, dataset, fresh())
    assert len(run(tmp_path, dataset, fresh(), total=8).rates) == 2
    assert [row["step"] for row in lines(tmp_path)] == list(range(1, 9))


# --- what goes wrong ------------------------------------------------------------------------------------------------


def bad_loss(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    return scalars | {"loss": torch.tensor(torch.nan)}


@pytest.mark.parametrize("every", [1, 100])
def test_a_bad_loss_ends_the_run_before_it_is_saved(tmp_path: Path, dataset: RecordTable, every: int) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 4 .*batch: \d\.png, \d\.png"):
        run(tmp_path, dataset, fresh(at=4, happens=bad_loss), every=every, total=8)
    assert steps_saved(tmp_path) == [3]


def test_a_full_disk_ends_the_run_and_keeps_the_older_checkpoint(
    tmp_path: Path, dataset: RecordTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(_: object) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", refuse)

    with pytest.raises(ValueError, match=r"step_00000006\.pt.*No space left.*step_00000003\.pt"):
        run(tmp_path, dataset, fresh(at=5, happens=disk_is_full))
    assert steps_saved(tmp_path) == [3]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, dataset: RecordTable) -> None:
    run(tmp_path, dataset, fresh())
    with pytest.raises(ValueError, match=r"checkpoints, step 6: .*another network.*head\.bbox_pred"):
        run(tmp_path, dataset, Step(tiny.detector(classes=5)))
