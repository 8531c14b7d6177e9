"""VGG16 on VOC 2007 + 2012, as mx-rcnn trained it end to end.

    rcnn train vgg16_voc0712 --data.root data/VOCdevkit --model.pretrained weights/VGG_ILSVRC_16_layers.caffemodel
    rcnn test runs/vgg16_voc0712 --data.root data/VOCdevkit

Expected: mAP 76.0 (11 points) on VOC 2007 test: mx-rcnn's README has 75.97, the paper 73.2. Not measured here.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_voc07

_BASE = vgg16_voc07.RECIPE
RECIPE = replace(_BASE, data=replace(_BASE.data, train="2007_trainval+2012_trainval"))
