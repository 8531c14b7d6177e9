"""VGG16 on VOC 2007, as mx-rcnn trained it end to end.

    rcnn train vgg16_voc07 --data.root data/VOCdevkit --model.pretrained weights/VGG_ILSVRC_16_layers.caffemodel
    rcnn test runs/vgg16_voc07 --data.root data/VOCdevkit

Expected: mAP 70.2 (11 points) on VOC 2007 test: mx-rcnn's README has 70.23, the paper 69.9. Not measured here: neither
the data nor ImageNet weights of VGG16 could be had where this was written. Pixels are RGB minus the Caffe mean; weights
of torchvision, trained on another range, are matched to it when they are read.
"""

from rcnn.config import Data, Recipe

RECIPE = Recipe(data=Data(format="voc", root="data/VOCdevkit", train="2007_trainval", test="2007_test"))
