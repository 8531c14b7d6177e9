"""Pre-activation ResNet-101 on COCO, as mx-rcnn trained it end to end.

    rcnn train r101_coco --data.root data/coco --model.pretrained resnet-101-0000.params
    rcnn test runs/r101_coco --data.root data/coco

Expected: AP 26.1 on val: mx-rcnn's README (train2014 -> val2014), the paper 27.2. Not measured here.
"""

from dataclasses import replace

from rcnn.recipes import r101_voc0712, vgg16_coco

RECIPE = replace(vgg16_coco.RECIPE, model=r101_voc0712.RECIPE.model)
