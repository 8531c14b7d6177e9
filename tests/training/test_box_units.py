import numpy as np
import pytest
import torch

from rcnn.data.proposals import ProposalTable
from rcnn.data.records import Record, RecordTable
from rcnn.training.box_units import measure_box_units

STD = (0.1, 0.1, 0.2, 0.2)


def table(*images: list[tuple[int, tuple[float, ...], bool]]) -> RecordTable:
    """Images of (label, box, ignored) objects."""
    records = []
    for i, objects in enumerate(images):
        off = np.array([ignored for _, _, ignored in objects], np.bool_)
        boxes = np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4)
        labels = np.array([label for label, _, _ in objects], np.int64)
        records.append(Record(f"{i}", f"{i}.png", 200, 200, boxes, labels, off, boxes[:, 0], off))
    return RecordTable.from_records(records, "made", ("a", "b", "absent"))


def measure(dataset: RecordTable, boxes: list[list[tuple[float, ...]]], **options: object):
    arrays = [np.array(rows, np.float32).reshape(-1, 4) for rows in boxes]
    proposals = ProposalTable.from_arrays(arrays, None, offset=0.0)
    given = {"offset": 0.0, "positive_iou": 0.5, "mirrored": False, "default_std": STD} | options
    return measure_box_units(dataset, proposals, **given)


def test_definition() -> None:
    dataset = table([(1, (0, 0, 100, 100), False), (2, (150, 150, 160, 160), False)])
    mean, std = measure(dataset, [[(10, 0, 110, 100), (0, 0, 100, 80), (0, 0, 10, 10)]])
    # of class 1: the object itself (0, 0, 0, 0), moved by 10 of 100: (-.1, 0, 0, 0), lower: (0, .125, 0, log 1.25)
    targets = np.array([[0, 0, 0, 0], [-0.1, 0, 0, 0], [0, 0.125, 0, np.log(1.25)]])
    assert mean[1].tolist() == pytest.approx([*targets.mean(0)[:2], 0, targets.mean(0)[3]], abs=1e-6)
    assert std[1].tolist() == pytest.approx([*targets.std(0)[:2], STD[2], targets.std(0)[3]], abs=1e-6)


def test_a_class_that_is_absent_or_does_not_vary_keeps_the_recipe_units() -> None:
    dataset = table([(1, (0, 0, 100, 100), False), (2, (150, 150, 160, 160), False)], [])
    mean, std = measure(dataset, [[(10, 0, 110, 100)], [(0, 0, 50, 50)]])
    for label in (0, 2, 3):
        assert mean[label].tolist() == [0, 0, 0, 0] and std[label].tolist() == pytest.approx(STD)
    assert std.isfinite().all() and (std > 0).all()


def test_ignored_objects_and_poor_proposals_do_not_count() -> None:
    dataset = table([(1, (0, 0, 100, 100), True), (1, (0, 100, 100, 200), False)])
    boxes = [(10.0, 0.0, 110.0, 100.0), (0.0, 110.0, 100.0, 210.0), (0.0, 190.0, 100.0, 200.0)]
    mean, _ = measure(dataset, [boxes])
    assert mean[1].tolist() == pytest.approx([0, -0.05, 0, 0], abs=1e-6)


def test_mirror_images_have_the_opposite_shift() -> None:
    dataset = table([(1, (0, 0, 100, 100), False)])
    mean, std = measure(dataset, [[(20, 0, 120, 100)]], mirrored=True)
    targets = np.array([0, -0.2, 0, 0.2])
    assert mean[1, 0] == 0 and std[1, 0].item() == pytest.approx(targets.std(), abs=1e-6)


def test_targets_in_these_units_have_mean_zero_and_deviation_one() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 90, (300, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(40, 110, (300, 2))], 1).astype(np.float32)
    dataset = table([(1, (20, 20, 120, 120), False), (2, (60, 60, 160, 170), False)])
    mean, std = measure(dataset, [[tuple(box) for box in boxes.tolist()]])
    from rcnn.ops.boxes import encode, iou

    objects = torch.from_numpy(dataset[0].boxes.copy())
    rois = torch.cat([torch.from_numpy(boxes), objects])
    best, index = iou(rois[None], objects[None], offset=0.0)[0].max(1)
    for label in (1, 2):
        mine = (best >= 0.5) & (index == label - 1)
        deltas = encode(rois[mine][None], objects[index[mine]][None], offset=0.0)[0]
        scaled = (deltas - mean[label]) / std[label]
        assert mine.sum() > 5
        torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
