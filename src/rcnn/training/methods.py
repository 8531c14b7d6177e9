"""The ways to train, each a list of phases and nothing else."""

from typing import Literal, NamedTuple

Part = Literal["joint", "rpn", "fast_rcnn"]

# Weights that a phase neither trains nor saves, by the beginning of their names.
UNTRAINED: dict[str, tuple[str, ...]] = {"joint": (), "rpn": ("head.",), "fast_rcnn": ("rpn.",)}


class Phase(NamedTuple):
    """One training: of what, from which weights, on whose proposals."""

    name: str
    part: Part
    start_from: str = ""  # an earlier phase; "": the pretrained backbone
    proposals_from: str = ""  # an earlier phase; "": none needed
    shared: bool = False  # the backbone is that of start_from and stays as it is


# Source: Faster R-CNN 3.2, the 4-step alternating training. The weights of rpn2 and rcnn2 together are the detector.
ALTERNATE = (
    Phase("rpn1", "rpn"),
    Phase("rcnn1", "fast_rcnn", proposals_from="rpn1"),
    Phase("rpn2", "rpn", start_from="rcnn1", shared=True),
    Phase("rcnn2", "fast_rcnn", start_from="rcnn1", proposals_from="rpn2", shared=True),
)
