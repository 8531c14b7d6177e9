from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.data.batches import BatchMaker, to_tensors
from rcnn.data.epoch import Item
from rcnn.data.proposals import ProposalTable
from rcnn.data.records import RecordTable
from rcnn.structures import Batch, Canvas, Limits

MakeTable = Callable[..., RecordTable]
CANVASES = (Canvas(32, 64), Canvas(64, 32))


def maker(table: RecordTable, canvases: tuple[Canvas, ...] = CANVASES, **options: Any) -> BatchMaker:
    given = {"sides": ((30, 60),), "offset": 1.0, "proposals": None, "on_bad_image": "error", **options}
    return BatchMaker(table, Limits(5, canvases), **given)


def made(maker: BatchMaker, *items: Item) -> tuple[Batch | None, list[str]]:
    arrays, problems = maker.make(items)
    return arrays and to_tensors(arrays), problems


def item(index: int, flip: bool = False, canvas: int = 0, seed: int = 7) -> Item:
    return Item(index, flip, seed, canvas)


def test_fields_of_a_batch(make_table: MakeTable) -> None:
    table = make_table([(15, 20)] * 4)
    batch, problems = made(maker(table), item(3, seed=5), item(0), item(-1))
    assert batch is not None and problems == []
    assert batch.images.shape == (3, 32, 64, 3) and batch.images.is_contiguous()
    assert batch.image_size.tolist() == [[30, 40], [30, 40], [32, 64]] and batch.scale.tolist() == [2, 2, 1]
    assert batch.image_index.tolist() == [3, 0, -1] and batch.seed.tolist() == [5, 7, 7]
    assert (batch.images[0, :30, :40] == 4).all() and (batch.images[1, :30, :40] == 1).all()
    assert not batch.images[0, 30:].any() and not batch.images[0, :, 40:].any() and not batch.images[2].any()
    assert np.allclose(batch.boxes[0, :3], table[3].boxes * 2) and not batch.boxes[0, 3:].any()
    assert batch.labels[0].tolist() == [*table[3].labels, 0, 0] and not batch.labels[1:].any()
    assert batch.boxes_valid.tolist() == [[True, True, False, False, False], [False] * 5, [False] * 5]
    assert batch.boxes_ignored.tolist() == [[False, False, True, False, False], [False] * 5, [False] * 5]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_mirror_images(make_table: MakeTable, offset: float) -> None:
    table = make_table([(15, 20)] * 4)
    batch, _ = made(maker(table, offset=offset), item(3), item(3, flip=True))
    assert batch is not None
    here, mirrored = batch.boxes[:, :3].numpy() / 2
    assert np.allclose(mirrored[:, [0, 2]], 20 - offset - here[:, [2, 0]], atol=1e-5)
    assert np.array_equal(mirrored[:, [1, 3]], here[:, [1, 3]])


def test_exact_canvases_are_the_size_of_the_picture(make_table: MakeTable) -> None:
    batch, _ = made(maker(make_table([(15, 20), (40, 10)]), canvases=()), item(1))
    assert batch is not None and batch.images.shape == (1, 60, 15, 3)
    assert (batch.images == 2).all() and batch.image_size.tolist() == [[60, 15]]


def test_a_picture_that_does_not_fit_is_made_smaller(make_table: MakeTable) -> None:
    batch, _ = made(maker(make_table([(30, 60)]), canvases=(Canvas(32, 32),)), item(0))
    assert batch is not None and batch.image_size.tolist() == [[16, 32]]


def test_bad_images_are_told(make_table: MakeTable) -> None:
    table = make_table([(15, 20)] * 3)
    Path(table[1].path).write_bytes(b"no picture")
    batch, problems = made(maker(table), item(0), item(1), item(2))
    assert batch is None and len(problems) == 1 and "1.png: is damaged, or no picture" in problems[0]


def test_bad_images_may_stay_blank(make_table: MakeTable) -> None:
    table = make_table([(15, 20)] * 4)
    Path(table[3].path).unlink()
    batch, problems = made(maker(table, on_bad_image="blank"), item(3), item(2))
    assert batch is not None and len(problems) == 1 and "3.png: no such image file" in problems[0]
    assert batch.image_index.tolist() == [-1, 2]
    assert not batch.images[0].any() and not batch.boxes_valid[0].any() and batch.boxes_valid[1].any()


def test_a_picture_that_changed_is_told(make_table: MakeTable, picture: Callable[..., Path]) -> None:
    table = make_table([(15, 20)])
    picture(Path(table[0].path), 20, 15)
    assert "0.png: is 15x20 but the data set says 20x15" in made(maker(table), item(0))[1][0]


def test_proposals_move_with_their_picture(make_table: MakeTable) -> None:
    table = make_table([(15, 20)] * 2)
    boxes = [np.array([[1, 2, 9, 8], [0, 0, 19, 14]], np.float32), np.zeros((0, 4), np.float32)]
    proposals = ProposalTable.from_arrays(boxes, None, offset=1.0)
    limits = Limits(5, CANVASES, proposals=3)
    maker_of_three = BatchMaker(table, limits, sides=((30, 60),), offset=1.0, proposals=proposals, on_bad_image="error")
    batch, _ = made(maker_of_three, item(0), item(0, flip=True), item(1), item(-1))
    assert batch is not None and batch.proposals.shape == (4, 3, 4)
    assert batch.proposals[0].tolist() == [[2, 4, 18, 16], [0, 0, 38, 28], [0, 0, 0, 0]]
    assert batch.proposals[1].tolist() == [[20, 4, 36, 16], [0, 0, 38, 28], [0, 0, 0, 0]]
    assert batch.proposals_valid.tolist() == [[True, True, False], [True, True, False], [False] * 3, [False] * 3]


def test_pictures_into_given_memory_whatever_it_held(make_table: MakeTable) -> None:
    table = make_table([(15, 20), (15, 12), (15, 20)])
    Path(table[2].path).unlink()
    items = [item(0), item(-1), item(1), item(2)]
    memory = np.full(5 * 32 * 64 * 3, 9, np.uint8)
    blank = maker(table, on_bad_image="blank")
    arrays, _ = blank.make(items, memory)
    expected, _ = blank.make(items)
    assert arrays is not None and expected is not None and np.shares_memory(arrays.images, memory)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))
    assert not arrays.images[1].any() and not arrays.images[3].any() and (memory[4 * 32 * 64 * 3 :] == 9).all()


def test_the_largest_canvas(make_table: MakeTable) -> None:
    table = make_table([(15, 20), (40, 10)])
    assert maker(table, (Canvas(32, 64), Canvas(64, 40))).largest_canvas() == 64 * 40
    assert maker(table, ()).largest_canvas() == 30 * 40
    assert maker(table, (), sides=((30, 60), (45, 90))).largest_canvas() == 45 * 60


def test_a_canvas_says_at_which_sides_its_pictures_are_resized(make_table: MakeTable) -> None:
    table = make_table([(15, 20)])
    canvases = (Canvas(32, 64), Canvas(64, 32), Canvas(48, 64), Canvas(64, 48))
    batch, _ = made(maker(table, canvases, sides=((30, 60), (45, 90))), item(0, canvas=2))
    assert batch is not None and batch.scale.tolist() == [3] and batch.image_size.tolist() == [[45, 60]]
    exact, _ = made(maker(table, (), sides=((30, 60), (45, 90))), item(0, canvas=1))
    assert exact is not None and exact.images.shape == (1, 45, 60, 3)
