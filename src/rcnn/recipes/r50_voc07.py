"""ResNet-50 C4 with torchvision's weights on VOC 2007, end to end, by the rules of vgg16_voc07.

    rcnn train r50_voc07 --data.root data/VOCdevkit --model.pretrained resnet50.pth
    rcnn test runs/r50_voc07 --data.root data/VOCdevkit

Expected: not published and not measured here; what it costs is in docs/speed.md.
"""

from dataclasses import replace

from rcnn.config import Model
from rcnn.recipes import vgg16_voc07

RECIPE = replace(
    vgg16_voc07.RECIPE,
    model=Model(
        backbone="resnet50",
        head="stage4",
        roi_size=14,
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        frozen=("conv1", "bn1", "layer1"),
    ),
)
