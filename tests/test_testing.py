from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.data.records import Record, RecordTable
from rcnn.testing import assert_is_backbone, assert_is_dataset


def table(folder: Path, **changes: object) -> RecordTable:
    """A data set of one record, right but for the changes."""
    (folder / "a.jpg").touch()
    record = Record(
        image_id="a",
        path=str(folder / "a.jpg"),
        height=40,
        width=60,
        boxes=np.array([[0, 0, 59, 39]], np.float32),
        labels=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([2400], np.float32),
        crowd=np.array([False]),
    )
    return RecordTable.from_records([record._replace(**changes)], "own", ("cat",))


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    assert_is_dataset(table(tmp_path), offset=1.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"boxes": np.array([[0, 0, 60, 39]], np.float32)}, "reaches outside the image"),
        ({"boxes": np.array([[-1, 0, 9, 39]], np.float32)}, "reaches outside the image"),
        ({"boxes": np.array([[9, 0, 8, 39]], np.float32)}, "a box has no area"),
        ({"boxes": np.array([[np.nan, 0, 8, 39]], np.float32)}, "not finite"),
        ({"labels": np.array([0])}, r"labels must be 1\.\.1"),
        ({"labels": np.array([2])}, r"labels must be 1\.\.1"),
        ({"crowd": np.array([True])}, "a crowd must be ignored too"),
        ({"path": "/absent.jpg"}, "is no file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(AssertionError, match=rf"record 0 \('a'\): .*{problem}"):
        assert_is_dataset(table(tmp_path, **changes), offset=1.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda made: setattr(made, "classes", ["cat"]), "tuple of str"),
        (lambda made: setattr(made, "classes", ("cat", "cat")), "unique"),
        (lambda made: setattr(made, "sizes", made.sizes[0]), r"\(N, 2\)"),
        (lambda made: setattr(made, "num_boxes", made.num_boxes + 1), r"boxes has shape \(1, 4\), not \(2, 4\)"),
    ],
)
def test_what_is_wrong_with_the_set_is_named(tmp_path: Path, change: Callable[..., None], problem: str) -> None:
    made = table(tmp_path)
    change(made)
    with pytest.raises(AssertionError, match=problem):
        assert_is_dataset(made, offset=1.0)


class Cells(nn.Module):
    """A backbone that keeps the contract, but for what is asked to be wrong."""

    channels, stride = 4, 8

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.conv = nn.Conv2d(3, 4, 8, 8)
        self.norm = nn.BatchNorm2d(4)
        self.norm.requires_grad_(wrong in ("batch statistics", "unused weights"))
        if wrong == "no stride":
            self.stride = None

    def forward(self, x: Tensor) -> Tensor:
        if self.wrong == "changed input":
            x.mul_(2)
        y = self.conv(x[..., :8, :8] if self.wrong == "one cell" else x)
        y = self.norm(y) if self.wrong == "batch statistics" else y
        y = F.pad(y, (0, 2)) if self.wrong == "odd canvas" and x.shape[-1] % 8 else y
        return y / 0 if self.wrong == "infinite" else y


def test_a_sound_backbone_passes() -> None:
    assert_is_backbone(Cells())


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("no stride", "channels and stride must be attributes"),
        ("changed input", "changes its input"),
        ("one cell", r"have shape \(2, 4, 1, 1\), not \(2, 4, 2, 3\)"),
        ("infinite", "finite"),
        ("batch statistics", "depend on the other images"),
        ("unused weights", r"no gradient reaches norm\.weight, norm\.bias"),
        ("odd canvas", "a pixel less makes 1 x 4 cells"),
    ],
)
def test_a_backbone_that_breaks_the_contract_is_told_so(wrong: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        assert_is_backbone(Cells(wrong))
