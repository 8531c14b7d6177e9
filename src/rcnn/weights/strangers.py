"""Detectors of other programs, known by their names of tensors, that are not read yet."""

import re
from collections.abc import Iterable

# What a name must begin with, in this order: detectron2 took some of its names from where torchvision did.
STRANGERS = {
    r"(proposal_generator\.|backbone\.bottom_up\.|backbone\.res[2-5]\.)": "detectron2",
    r"roi_heads\.box\.": "maskrcnn-benchmark",
    r"(backbone\.body\.|backbone\.fpn\.|roi_heads\.box_(head|predictor)\.)": "torchvision",
    r"(rpn_head\.rpn_(conv|cls|reg)\.|(roi_head\.)?bbox_head\.)": "mmdetection",
    r"(rpn_cls_score_net|bbox_pred_net)\.": "pytorch-faster-rcnn (ruotianluo)",
    r"(transformer\.(encoder|decoder)|class_embed)\.": "the DETR family",
}
READ = "mx-rcnn, py-faster-rcnn, simple-faster-rcnn-pytorch and jwyang's faster-rcnn.pytorch"


def refuse_strangers(names: Iterable[str], *, source: str) -> None:
    """Passes unless the names of the tensors are those of a detector that we know and do not read.

    Raises:
        ValueError: saying whose it is, by which tensor, and whose detectors are read.
    """
    names = list(names)
    for pattern, program in STRANGERS.items():
        found = next((name for name in names if re.match(pattern, name)), None)
        if found is not None:
            raise ValueError(
                f"{source}: this is a detector of {program} ({found}), which is not read yet; detectors of {READ} are, "
                "and torchvision's classifiers to start a training from"
            )
