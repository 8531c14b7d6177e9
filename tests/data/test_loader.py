import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rcnn.data.canvases import measure_limits
from rcnn.data.loader import Loader
from rcnn.data.records import RecordTable
from rcnn.data.voc import load_voc
from rcnn.structures import Batch, Limits

MakeTable = Callable[..., RecordTable]
SIZES = [(15, 20), (20, 15), (12, 24), (15, 20), (20, 20), (30, 11), (15, 20)]
SIDES: dict[str, Any] = {"short": 30, "long": 60}
OPTIONS: dict[str, Any] = {
    **SIDES, "batch": 2, "offset": 1.0, "flip": "random", "shuffle": True, "seed": 3, "workers": 0,
}  # fmt: skip


@pytest.fixture
def table(make_table: MakeTable) -> RecordTable:
    """Seven small pictures of five shapes."""
    return make_table(SIZES)


def limits_of(table: RecordTable, **options: Any) -> Limits:
    return measure_limits(table, multiple=8, **SIDES, **options)


def loader(table: RecordTable, **options: Any) -> Loader:
    return Loader(table, limits_of(table), **{**OPTIONS, **options})


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for name, x, y in zip(Batch._fields, one, other, strict=True):
            assert torch.equal(x, y), name


def indices(batches: Iterator[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.image_index]


@pytest.mark.parametrize("flip", ["none", "random", "both"])
def test_an_epoch_holds_every_image(table: RecordTable, flip: str) -> None:
    made = loader(table, flip=flip)
    batches = list(made.epoch(0))
    assert len(batches) == len(made)
    assert set(indices(iter(batches))) == set(range(len(SIZES)))
    assert all(batch.images.shape[0] == 2 and batch.boxes.shape[1] == 3 for batch in batches)


def test_evaluation_sees_every_image_once(table: RecordTable) -> None:
    seen = indices(loader(table, shuffle=False, flip="none").epoch(0))
    assert sorted(i for i in seen if i >= 0) == list(range(len(SIZES))) and -1 in seen


def test_an_epoch_can_be_repeated_and_resumed(table: RecordTable) -> None:
    whole = list(loader(table, flip="both").epoch(4))
    again = loader(table, flip="both")
    list(again.epoch(3))
    assert_equal(whole, list(again.epoch(4)))
    for start in (1, len(whole) - 1, len(whole)):
        assert_equal(whole[start:], list(again.epoch(4, start_step=start)))


def test_workers_make_the_same_batches(table: RecordTable) -> None:
    here, elsewhere = loader(table), loader(table, workers=2)
    for epoch in (0, 1):
        assert_equal(list(here.epoch(epoch)), list(elsewhere.epoch(epoch)))
    elsewhere.close()


def test_batches_kept_are_not_written_over(make_table: MakeTable) -> None:
    """Many more than the workers have places for, on canvases of different sizes."""
    table = make_table(SIZES * 6)
    here, elsewhere = loader(table, batch=1, flip="both"), loader(table, batch=1, flip="both", workers=2)
    assert_equal(list(here.epoch(0)), list(elsewhere.epoch(0)))
    elsewhere.close()


def test_exact_canvases_from_workers(table: RecordTable) -> None:
    limits, options = limits_of(table, canvas="exact"), {**OPTIONS, "batch": 1}
    elsewhere = Loader(table, limits, **{**options, "workers": 1})
    assert_equal(list(Loader(table, limits, **options).epoch(2)), list(elsewhere.epoch(2)))
    elsewhere.close()


def test_workers_survive_an_epoch_that_was_left(table: RecordTable) -> None:
    made = loader(table, workers=1)
    next(made.epoch(0))
    assert_equal(list(loader(table).epoch(1, start_step=1)), list(made.epoch(1, start_step=1)))
    made.close()


def test_workers_outlive_a_signal_to_every_process_and_end_with_the_loader(table: RecordTable) -> None:
    """As SLURM sends it: the loop has to save first."""
    before = set(multiprocessing.active_children())
    made = loader(table, workers=2)
    batches = made.epoch(0)
    found = [next(batches), next(batches)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid or 0, signal.SIGTERM)
    assert_equal(list(loader(table).epoch(0)), found + list(batches))
    made.close()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode is not None


SCRIPT = """
from pathlib import Path
import sys
from rcnn.data.canvases import measure_limits
from rcnn.data.loader import Loader
from rcnn.data.shapes import write_shapes
from rcnn.data.voc import load_voc

write_shapes(sys.argv[1], train=6, test=1, seed=0)
table = load_voc(sys.argv[1], "trainval", classes=("circle", "square", "triangle"), offset=0.0)
loader = Loader(
    table, measure_limits(table, short=60, long=90, multiple=32), batch=2, short=60, long=90, offset=0.0, flip="none",
    shuffle=True, seed=0, workers=2,
)
batches = loader.epoch(0)
next(batches)
print("got one", flush=True)
"""


def test_a_program_that_leaves_an_epoch_and_never_closes_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "got one\n" and not done.stderr


def test_an_epoch_cannot_go_on_after_closing(table: RecordTable) -> None:
    made = loader(table, workers=1)
    batches = made.epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    made.close()
    worker.join(20)
    assert worker.exitcode == 0
    with pytest.raises(RuntimeError, match="the loader was closed"):
        next(batches)


def test_the_global_generator_is_left_alone(table: RecordTable) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made = loader(table, workers=1)
    list(made.epoch(0))
    assert torch.equal(torch.rand(1), expected)
    made.close()


def test_one_epoch_at_a_time(table: RecordTable) -> None:
    made = loader(table)
    first, second = made.epoch(0), made.epoch(1)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="another epoch of this loader was begun"):
        next(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_end_the_epoch_with_one_clear_message(table: RecordTable, workers: int) -> None:
    Path(table[2].path).write_bytes(Path(table[2].path).read_bytes()[:40])
    made = loader(table, workers=workers)
    with pytest.raises(ValueError, match=r"2\.png: the file ends early.*leave it out$") as error:
        list(made.epoch(0))
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)
    made.close()


def test_bad_images_may_be_left_out(table: RecordTable, caplog: pytest.LogCaptureFixture) -> None:
    Path(table[2].path).unlink()
    seen = indices(loader(table, on_bad_image="blank", flip="none").epoch(0))
    assert 2 not in seen and -1 in seen
    assert "left out:" in caplog.text and "2.png: no such image file" in caplog.text


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_of_training_is_the_same_for_any_number_of_processes(table: RecordTable, world: int) -> None:
    """The same images in the same order, mirrored and seeded alike; what is left over is empty and comes last."""
    whole = list(loader(table, batch=4).epoch(2))
    ranks = [list(loader(table, batch=4, rank=rank, world=world).epoch(2)) for rank in range(world)]
    for shares, expected in zip(zip(*ranks, strict=True), whole, strict=True):
        for name, *parts, one in zip(Batch._fields, *shares, expected, strict=True):
            assert torch.equal(torch.cat(parts)[:4], one), name
        assert (torch.cat([share.image_index for share in shares])[4:] == -1).all()


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_evaluation_has_the_same_batches_for_any_number_of_processes(table: RecordTable, world: int) -> None:
    options = {"shuffle": False, "flip": "none"}
    whole = list(loader(table, **options).epoch(0))
    ranks = [loader(table, rank=rank, world=world, **options) for rank in range(world)]
    made = [list(each.epoch(0)) for each in ranks]
    assert [len(each) for each in ranks] == [len(batches) for batches in made]
    assert all(each.steps_of_all == len(whole) for each in ranks)
    assert_equal(whole, [made[step % world][step // world] for step in range(len(whole))])


def test_exact_canvases(table: RecordTable) -> None:
    made = Loader(table, limits_of(table, canvas="exact"), **{**OPTIONS, "batch": 1, "flip": "none", "shuffle": False})
    batches = list(made.epoch(0))
    assert indices(iter(batches)) == list(range(len(SIZES)))
    assert all(tuple(batch.images.shape[1:3]) == tuple(batch.image_size[0]) for batch in batches)


def test_refuses_what_cannot_work(table: RecordTable, make_table: MakeTable) -> None:
    with pytest.raises(ValueError, match=r"3\.png: has 3 boxes, but an image may have 2; set --data.max_boxes 3"):
        Loader(table, limits_of(table, max_boxes=2), **OPTIONS)
    with pytest.raises(ValueError, match="a batch of 2 images needs canvases of one size"):
        Loader(table, limits_of(table, canvas="exact"), **OPTIONS)
    with pytest.raises(ValueError, match="made: its 7 images fill no batch of 50"):
        loader(table, batch=50, drop_last=True)
    with pytest.raises(ValueError, match="a batch of 0 images"):
        loader(table, batch=0)
    with pytest.raises(ValueError, match="none of its 1 images has a box"):
        loader(make_table([(15, 20)]))
    with pytest.raises(ValueError, match="the set has no image"):
        Loader(table[:0], limits_of(table), **OPTIONS)


def test_takes_any_data_set(table: RecordTable) -> None:
    class Own(SimpleNamespace):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, index: int):
            return table[index]

    own = Own(name="own", classes=table.classes, sizes=np.array(table.sizes), num_boxes=np.array(table.num_boxes))
    assert_equal(list(Loader(own, limits_of(table), **OPTIONS).epoch(0)), list(loader(table).epoch(0)))


def test_real_pictures(shared: Path) -> None:
    table = load_voc(shared / "data" / "voc2007", "test", offset=1.0)[:12]
    sides = {"short": 120, "long": 200}
    limits = measure_limits(table, multiple=32, **sides)
    made = Loader(table, limits, **{**OPTIONS, **sides, "flip": "none", "shuffle": False})
    batches = list(made.epoch(0))
    assert sorted(i for i in indices(iter(batches)) if i >= 0) == list(range(12))
    for batch in batches:
        inside = batch.boxes[..., 2:] <= batch.image_size.flip(1)[:, None] + 0.5  # sizes are rounded
        assert inside[batch.boxes_valid].all() and (batch.scale > 0).all()
