"""Pre-activation ResNet-101 on VOC 2007 + 2012, as mx-rcnn trained it end to end.

    rcnn train r101_voc0712 --data.root data/VOCdevkit --model.pretrained resnet-101-0000.params
    rcnn test runs/r101_voc0712 --data.root data/VOCdevkit

Expected: mAP 79.4 (11 points) on VOC 2007 test: mx-rcnn's README has 79.35, the paper 76.4. Not measured here.
"""

from dataclasses import replace

from rcnn.config import Model
from rcnn.recipes import vgg16_voc0712

RECIPE = replace(
    vgg16_voc0712.RECIPE,
    model=Model(
        backbone="resnet101_v2",
        head="stage4",
        roi_size=14,
        pixel_mean=(0.0, 0.0, 0.0),  # the network's own bn_data normalises
        frozen=("conv0", "stage1"),
    ),
)
