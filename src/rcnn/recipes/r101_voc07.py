"""Pre-activation ResNet-101 on VOC 2007, end to end, as mx-rcnn's resnet_voc07.sh.

    rcnn train r101_voc07 --data.root data/VOCdevkit --model.pretrained resnet-101-0000.params
    rcnn test runs/r101_voc07 --data.root data/VOCdevkit

Expected: not published by mx-rcnn and not measured here.
"""

from dataclasses import replace

from rcnn.recipes import r101_voc0712, vgg16_voc07

RECIPE = replace(vgg16_voc07.RECIPE, model=r101_voc0712.RECIPE.model)
