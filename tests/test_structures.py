import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from rcnn import structures
from tests import tiny

NAMES = ("Batch", "Proposals", "RpnOutput", "AnchorTargets", "RoiTargets", "Detections")


def axes(structure: type) -> dict[str, list[str]]:
    """The axis letters of each field."""
    return {name: hint.dim_str.split() for name, hint in structure.__annotations__.items()}


@pytest.mark.parametrize("name", NAMES)
def test_masks_have_the_axes_of_what_they_mask(name: str) -> None:
    fields = axes(getattr(structures, name))
    masks = {field: letters for field, letters in fields.items() if field.split("_")[-1] in ("valid", "ignored")}
    for field, letters in masks.items():
        masked = field.rpartition("_")[0]
        expected = fields[masked] if masked else fields["boxes"]
        assert letters[-1] in expected, f"{field} has axes {letters}, what it masks {expected}"


@pytest.mark.parametrize("name", NAMES)
def test_images_come_first(name: str) -> None:
    fields = axes(getattr(structures, name))
    shared = {"anchors"}  # the same for all images of a canvas
    assert all(letters[0] == "B" for field, letters in fields.items() if field not in shared)


def test_a_batch_travels_between_processes_and_through_the_compiler() -> None:
    batch = tiny.batch()
    back = pickle.loads(pickle.dumps(batch))
    assert isinstance(back, structures.Batch)
    leaves, _ = pytree.tree_flatten(back)
    assert len(leaves) == len(batch) and all(map(torch.equal, leaves, batch))
