"""The precision-recall picture: one panel for ten classes."""

import json

import cv2
import numpy as np
import pytest

from rcnn.evaluation.plots import plot_precision_recall, plot_training
from rcnn.evaluation.voc import Curve


def curve(num_gt: int = 2) -> Curve:
    return Curve(np.array([0.5, 1.0]), np.array([1.0, 0.5]), np.array([0.9, 0.8]), num_gt, 2)


def test_the_picture_grows_with_the_classes(tmp_path):
    plot_precision_recall({"cat": curve(), "unicorn": curve(0)}, tmp_path / "one.png", title="test")
    plot_precision_recall({str(n): curve() for n in range(11)}, tmp_path / "two.png")
    one, two = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "two.png"))
    assert one.shape[0] == two.shape[0]
    assert two.shape[1] > 1.5 * one.shape[1]
    assert (one.max(2) < 128).any() and (np.ptp(one, axis=2) > 50).any()  # text and a coloured line


def test_a_class_that_was_never_found_is_drawn(tmp_path):
    empty = Curve(np.zeros(0), np.zeros(0), np.zeros(0), 3, 0)
    plot_precision_recall({"cat": empty}, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 0


def test_without_ground_truth_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no class has ground truth"):
        plot_precision_recall({"cat": curve(0)}, tmp_path / "p.png")


def test_a_training_run(tmp_path):
    names = ("loss", "rpn_cls", "rpn_box", "head_cls", "head_box", "lr")
    rows = [{"step": step, **{name: 1 / (step + n) for n, name in enumerate(names)}} for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plot_training(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[1] > 2 * picture.shape[0]
    assert (np.ptp(picture, axis=2) > 50).any()
